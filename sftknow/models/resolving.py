"""The base model of an experiment: where it lies, what identifies its weights."""

from __future__ import annotations

import atexit
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from sftknow.artifacts.files import atomic_file, digest, write_json
from sftknow.artifacts.lock import Lock
from sftknow.artifacts.manifests import MANIFEST, read_manifest, write_manifest
from sftknow.checkpoints.adapters import CONFIG, WEIGHTS, Adapter, is_adapter
from sftknow.checkpoints.deltas import is_delta, materialize
from sftknow.checkpoints.index import no_weights, packed_in_gguf, refuse_adapter
from sftknow.checkpoints.side_files import refuse_foreign
from sftknow.errors import CheckpointError, HubError, ModelError
from sftknow.models.identity import files_sha256, refuse_no_weights, weights_sha256
from sftknow.models.pull import NOT_FETCHED, pull
from sftknow.records import ModelRef
from sftknow.resources import cache_folder, lab_folder

_COPIED = 10**9
"""Bytes of a base up to which a run keeps a copy of it."""


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
    if not named:
        raise ModelError(
            f"the adapter {folder} names nothing as its base; write the base's place into base_model_name_or_path of "
            f"{folder / CONFIG}"
        )
    beside = (folder / named).resolve()
    if not Path(named).is_dir() and beside != folder.resolve() and beside.is_dir():
        named = str(beside)
    try:
        return resolve_base(named, None if Path(named).is_dir() or named == "lab" else revision, None)
    except (ModelError, HubError) as error:
        raise type(error)(
            f"the adapter {folder} names {named} as its base ({error}); put the base there, or write its "
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
        if named_base := _named_base(folder):
            return _find(named_base, None)
    elif Path(path).is_file() and path.lower().endswith(".gguf"):
        raise ModelError(packed_in_gguf(Path(path)))
    elif Path(path).is_file():
        raise ModelError(f"{path} is a file, and a model is a folder; give one, org/name on the Hub, or `lab`")
    elif path.count("/") == 1 and not path.startswith((".", "/", "~")):
        named = ModelRef.parse(path)
        wanted = revision or named.revision
        folder = pull(f"{named.path}@{wanted}" if wanted else named.path, repo_type="model")
        name = f"{named.path}@{folder.name}"
    else:
        raise ModelError(f"there is no model at {path}; give a folder, org/name on the Hub, or `lab`")
    if is_delta(folder):
        folder = whole_folder(folder)
    if not (folder / "config.json").is_file() and not is_adapter(folder):
        if any(folder.glob("*.gguf")):
            raise ModelError(no_weights(folder))
        refuse_adapter(folder)
        raise ModelError(f"{folder} has no config.json: it is no model folder")
    return folder, name


def place_base(base: BaseModel, out: Path, dataset: dict[str, str]) -> None:
    """Make a folder that is the base model and names the graded data set, so that lm-eval finds both.

    Files are copied, so that the folder can be moved to another machine. Weights beyond `_COPIED` bytes are links:
    where they lead nowhere, as on another machine, every command takes the base by the name in the manifest instead.

    Args:
        base: the model.
        out: the folder; what is there already stays.
        dataset: the manifest's ``mastery_dataset``.
    """
    out.mkdir(parents=True, exist_ok=True)
    there = [file for file in Path(base.ref.path).iterdir() if file.is_file() and file.suffix not in NOT_FETCHED]
    files = [file for file in there if file.name != MANIFEST]
    copied = sum(file.stat().st_size for file in files) <= _COPIED
    for file in files:
        target = out / file.name
        if (copied or file.suffix != ".safetensors") and (target.is_symlink() or not target.is_file()):
            with atomic_file(target) as partial:
                shutil.copyfile(file, partial)
        elif not target.is_file():
            target.unlink(missing_ok=True)  # a link of an earlier place
            target.symlink_to(file.resolve())
    write_manifest(out, "model", {"base": {"path": base.name, "sha256": base.sha256}, "mastery_dataset": dataset})


def _named_base(folder: Path) -> str | None:
    """The base that a run's ``models/base`` stands for, where its links to the weights lead nowhere; else None."""
    links = [file for file in folder.glob("*.safetensors") if file.is_symlink()]
    if not links or all(file.exists() for file in links):
        return None
    manifest = read_manifest(folder, "model") or {}
    named = (manifest.get("base") or {}).get("path")
    return str(named) if named and not manifest.get("sft") else None


def model_folder(model: str | Path) -> Path:
    """The folder of a checkpoint that Python code names; one that is there is taken as it is.

    Args:
        model: a folder, ``org/name[@revision]`` or ``lab``; of one that is stored small it is a whole copy.

    Raises:
        ModelError, CheckpointError, HubError: as `local_model`.
    """
    folder = Path(model)
    if folder.is_dir() and not is_delta(folder):
        return folder
    return Path(local_model(ModelRef.parse(str(model))).path)


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


def materialize_model(delta: Path, out: Path, base: str | None = None) -> Path:
    """Write the whole checkpoint: the very files that were trained, with their paths to the graded data mended.

    Args:
        delta: the stored model's folder.
        out: the checkpoint's folder; a model of sftknow that is there is replaced.
        base: a folder, ``org/name[@revision]`` or ``lab``; None takes the base that the model names, or the one beside
            it in its run.

    Returns:
        ``out``.

    Raises:
        CheckpointError: no delta, another base, or a folder of something else in the way.
        ModelError: the base that the model names is not to be found.
    """
    if not is_delta(delta):
        raise CheckpointError(f"{delta} holds no delta; a checkpoint that is whole needs nothing")
    manifest = read_manifest(delta, "model")
    if manifest is None:
        raise CheckpointError(f"{delta} has no {MANIFEST}: it was not finished; train it again")
    refuse_foreign(out, sources=[delta])
    named = base or (manifest.get("base") or {}).get("path")
    if not named:
        raise CheckpointError(f"{delta} does not name its base; give it with --base")
    try:
        found = resolve_base(str(named), None, None)
    except (ModelError, HubError):
        beside = delta.resolve().parent / "base"
        if base is not None or not (beside / MANIFEST).is_file():
            raise
        found = resolve_base(str(beside), None, None)
    materialize(Path(found.ref.path), delta, out)
    data = manifest.get("mastery_dataset") or {}
    if "path" in data and not Path(data["path"]).is_absolute():
        place = os.path.relpath((delta / data["path"]).resolve(), out.resolve())
        write_json(out / MANIFEST, {**manifest, "mastery_dataset": {**data, "path": place}})
    return out


_whole: dict[tuple[str, str], Path] = {}
"""By a stored model's folder and identity: its whole checkpoint, while this process lives."""


def whole_folder(delta: Path) -> Path:
    """The whole checkpoint of a model that is stored small, for as long as this process lives; the model stays small.

    It lies in the user's cache and goes away with the process. What a killed process left is cleared by the next one.

    Raises:
        CheckpointError, ModelError, HubError: as `materialize_model`.
    """
    key = (str(delta.resolve()), weights_sha256(delta))
    if key in _whole and _whole[key].is_dir():
        return _whole[key]
    place = cache_folder() / "whole"
    mine = place / str(os.getpid())
    if not _whole:
        _clear_left(place)
        busy = CheckpointError(f"another process works in {mine}; start again")
        lock = Lock(mine.with_suffix(".lock"), busy)
        lock.take()
        atexit.register(_leave, mine, lock, os.getpid())
    out = mine / digest(key)[:12] / delta.resolve().name
    out.parent.mkdir(parents=True, exist_ok=True)
    _whole[key] = materialize_model(delta, out)
    return out


def _clear_left(place: Path) -> None:
    """Remove what processes left that are no more: nobody holds their lock."""
    for folder in [each for each in place.glob("*") if each.is_dir()] if place.is_dir() else []:
        lock = Lock(folder.with_suffix(".lock"), CheckpointError(str(folder)))
        try:
            lock.take()
        except CheckpointError:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _leave(folder: Path, lock: Lock, process: int) -> None:
    if os.getpid() == process:  # and not a fork of it
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
