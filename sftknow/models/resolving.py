"""The base model of an experiment: where it lies, what identifies its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sftknow.artifacts.files import digest
from sftknow.artifacts.manifests import MANIFEST, write_manifest
from sftknow.checkpoints.adapters import CONFIG, WEIGHTS, Adapter, is_adapter
from sftknow.checkpoints.index import DELTA_INDEX, no_weights, refuse_adapter, stored_small
from sftknow.errors import CheckpointError, HubError, ModelError
from sftknow.models.identity import files_sha256, refuse_no_weights, weights_sha256
from sftknow.models.pull import pull
from sftknow.records import ModelRef
from sftknow.resources import lab_folder


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A base model on this machine's disk."""

    ref: ModelRef
    """Local folder to load from, with the dtype asked for."""
    name: str
    """What people call it: ``lab``, the folder as given, or ``org/name@commit``."""
    sha256: str
    """Identifies the weights."""


def resolve_base(path: str, revision: str | None, dtype: str | None) -> BaseModel:
    """Find the base model; from the Hub it is pulled at a commit.

    Args:
        path: ``lab``, a folder, or ``org/name`` or ``org/name@revision``.
        revision: on the Hub; goes before one in the path.
        dtype: to load in.

    Raises:
        ModelError: there is no such model.
        CheckpointError: it is a LoRA adapter.
        HubError: the Hub refused.
    """
    folder, name = _find(path, revision)
    refuse_adapter(folder)
    return BaseModel(ref=ModelRef(path=str(folder), dtype=dtype), name=name, sha256=weights_sha256(folder))


def resolve_model(path: str, revision: str | None, dtype: str | None) -> BaseModel:
    """The same for any model that is asked questions: it may be an adapter, which counts together with its own base."""
    folder, name = _find(path, revision)
    return BaseModel(ref=ModelRef(path=str(folder), dtype=dtype), name=name, sha256=model_sha256(folder))


def model_sha256(folder: Path) -> str:
    """What identifies the weights of a model; of an adapter its own and its base's. Raises as `adapter_base`."""
    if not is_adapter(folder):
        return weights_sha256(folder)
    return digest([files_sha256(folder, (CONFIG, WEIGHTS)), adapter_base(folder).sha256])


def adapter_base(folder: Path) -> BaseModel:
    """The base that an adapter names: a folder, as it stands or seen from the adapter, `lab`, or a model on the Hub.

    Raises:
        CheckpointError: the adapter cannot be merged, or its base is an adapter, too.
        ModelError: it names no base, or one that cannot be found.
        HubError: the Hub refused.
    """
    named, revision = Adapter.read(folder).base
    beside = (folder / named).resolve()
    if named and not Path(named).is_dir() and beside != folder.resolve() and beside.is_dir():
        named = str(beside)
    try:
        return resolve_base(named, None if Path(named).is_dir() or named == "lab" else revision, None)
    except (ModelError, HubError) as error:
        raise type(error)(
            f"the adapter {folder} names {named or 'nothing'} as its base ({error}); put the base there, or write its "
            f"place into base_model_name_or_path of {folder / CONFIG}"
        ) from None


def check_adapter_base(base: BaseModel, folder: Path) -> None:
    """Refuse a base that is not the adapter's, where its own one is a folder on this machine; shapes are checked later.

    Raises:
        CheckpointError: what `Adapter.read` raises; the weights of the base that the adapter names are others.
    """
    named, _ = Adapter.read(folder).base
    for place in (Path(named), folder / named) if named else ():
        if place.is_dir() and place.resolve() != folder.resolve() and any(place.glob("*.safetensors")):
            if weights_sha256(place) != base.sha256:
                raise CheckpointError(
                    f"{base.name} is not the base of the adapter {folder}, which was trained on {named} with other "
                    f"weights; give {named} as BASE"
                )
            return


def _find(path: str, revision: str | None) -> tuple[Path, str]:
    """The folder and the name of a model; what `resolve_base` raises, but for adapters, which are let through."""
    if revision and (path == "lab" or Path(path).is_dir()):
        raise ModelError(f"{path} is not on the Hub and has no revision {revision}; leave the revision out")
    if path == "lab":
        folder, name = lab_folder() / "model", "lab"
        if not (folder / "config.json").is_file():
            raise ModelError(f"the lab model is missing from this installation ({folder}); reinstall sftknow")
    elif Path(path).is_dir():
        folder, name = Path(path).resolve(), path
    elif path.count("/") == 1 and not path.startswith((".", "/", "~")):
        named = ModelRef.parse(path)
        wanted = revision or named.revision
        folder = pull(f"{named.path}@{wanted}" if wanted else named.path, repo_type="model")
        name = f"{named.path}@{folder.name}"
    else:
        raise ModelError(f"there is no model at {path}; give a folder, org/name on the Hub, or `lab`")
    if (folder / DELTA_INDEX).is_file():
        raise ModelError(stored_small(folder))
    if not (folder / "config.json").is_file() and not is_adapter(folder):
        if any(folder.glob("*.gguf")):
            raise ModelError(no_weights(folder))
        refuse_adapter(folder)
        raise ModelError(f"{folder} has no config.json: it is no model folder")
    return folder, name


def link_base(base: BaseModel, out: Path, dataset: dict[str, str]) -> None:
    """Make a folder that is the base model and names the graded data set, so that lm-eval finds both.

    The files are links: a base may be large and must not be copied. ``dataset`` is the manifest's ``mastery_dataset``.
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in Path(base.ref.path).iterdir():
        target = out / file.name
        if file.name != MANIFEST and not target.is_symlink():
            target.symlink_to(file)
    write_manifest(out, "model", {"base": {"path": base.name, "sha256": base.sha256}, "mastery_dataset": dataset})


def local_model(ref: ModelRef) -> ModelRef:
    """The same model as a folder on this machine, maybe of an adapter; from the Hub it is pulled at a commit.

    Raises:
        ModelError, HubError: there is no such model.
        CheckpointError: an adapter that cannot be merged exactly.
    """
    folder, _ = _find(ref.path, ref.revision)
    if is_adapter(folder):
        Adapter.read(folder)
    else:
        refuse_no_weights(folder)
    return ModelRef(path=str(folder), dtype=ref.dtype)
