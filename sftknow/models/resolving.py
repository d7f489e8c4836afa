"""The base model of an experiment: where it lies, what identifies its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sftknow.artifacts.manifests import MANIFEST, write_manifest
from sftknow.checkpoints.index import DELTA_INDEX, no_weights, refuse_adapter, stored_small
from sftknow.errors import ModelError
from sftknow.models.identity import weights_sha256
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
    if not (folder / "config.json").is_file():
        refuse_adapter(folder)
        if any(folder.glob("*.gguf")):
            raise ModelError(no_weights(folder))
        raise ModelError(f"{folder} has no config.json: it is no model folder")
    return BaseModel(ref=ModelRef(path=str(folder), dtype=dtype), name=name, sha256=weights_sha256(folder))


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
    """The same model as a folder on this machine; from the Hub it is pulled at a commit."""
    return resolve_base(ref.path, ref.revision, ref.dtype).ref
