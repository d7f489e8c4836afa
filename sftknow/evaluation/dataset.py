"""Which graded data set a model is scored on, and which facts it was trained on.

A model that sftknow wrote names both in the ``sftknow.json`` beside its weights, in a local folder or on the Hub. Hub
repositories are only read here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from sftknow.errors import HubError, MasteryDataError
from sftknow.records import GradedFact, ModelRef, Split
from sftknow.storage.artifacts import file_sha256
from sftknow.storage.manifests import MANIFEST, dataset_of_model, read_manifest
from sftknow.storage.mastery_data import MasteryData, bucket_file

_WAY_OUT = "pass --metadata mastery_dataset=FOLDER or mastery_dataset=org/name@revision"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_dataset(mastery_dataset: str | None, model: ModelRef | None) -> MasteryData:
    """The data set that was asked for, else the one that the model names.

    Args:
        mastery_dataset: a folder, or ``org/name`` or ``org/name@revision`` on the Hub.
        model: the model that is scored, where it has a folder or a Hub id.

    Raises:
        MasteryDataError: neither names a data set, or what is named is not there or not whole.
        HubError: the Hub refused or could not be reached.
    """
    if mastery_dataset:
        return open_dataset(str(mastery_dataset))
    if model is None:
        raise MasteryDataError(f"no graded data set is named; {_WAY_OUT}")
    folder = _manifest_folder(model)
    named = dataset_of_model(folder) if folder else None
    if named is None:
        raise MasteryDataError(f"the model {model} names no graded data set in a sftknow.json; {_WAY_OUT}")
    place, revision = named
    if Path(place).is_absolute() and not Path(place).is_dir():
        raise MasteryDataError(f"the model {model} names the graded data set {place}, which is not there; {_WAY_OUT}")
    return open_dataset(f"{place}@{revision}" if revision else place)


def open_dataset(name: str) -> MasteryData:
    """A graded data set by folder or Hub id (``org/name`` or ``org/name@revision``).

    Raises:
        MasteryDataError: it is not there or not whole.
        HubError: the Hub refused or could not be reached.
    """
    ref = ModelRef.parse(name)
    if Path(ref.path).is_dir() or not _HUB_ID.fullmatch(ref.path):
        return MasteryData(ref.path)
    try:
        folder = snapshot_download(
            ref.path, repo_type="dataset", revision=ref.revision, allow_patterns=[MANIFEST, "*.parquet"]
        )
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise HubError(
            f"there is no folder {name} here, and the Hub's data set of that name cannot be read: {first_line(error)}",
            repo_id=ref.path,
        ) from None
    return MasteryData(folder)


def read_bucket(data: MasteryData, split: Split, bucket: int) -> list[GradedFact]:
    """The facts of one bucket in file order, after a comparison with the hash in the data set's manifest.

    Raises:
        MasteryDataError: the file is missing or damaged, or is another one than the manifest says.
    """
    name = bucket_file(split, bucket)
    rows = data.bucket(split, bucket)
    expected = data.manifest.get("sha256", {}).get(name)
    if expected and file_sha256(data.folder / name) != expected:
        raise MasteryDataError(f"{data.folder / name} is not the file that sftknow.json names; grade or pull it again")
    return rows


def training_facts(model: ModelRef) -> tuple[str, ...]:
    """Ids of the facts that the model was fine-tuned on, from ``sft.fact_ids`` of its manifest.

    Raises:
        MasteryDataError: the model names none: it was not fine-tuned by sftknow.
    """
    folder = _manifest_folder(model)
    manifest: dict[str, Any] = (read_manifest(folder, "model") if folder else None) or {}
    ids: Sequence[str] = (manifest.get("sft") or {}).get("fact_ids") or ()
    if not ids:
        raise MasteryDataError(
            f"the model {model} names no training facts (sft.fact_ids in sftknow.json); cbqa_mastery_train is for "
            "models that `sftknow sft` made, take cbqa_mastery for others"
        )
    return tuple(ids)


def _manifest_folder(model: ModelRef) -> Path | None:
    """The local folder that holds the model's manifest; None where it has none."""
    local = Path(model.path)
    if local.is_dir():
        return local
    if not _HUB_ID.fullmatch(model.path):
        return None
    try:
        return Path(hf_hub_download(model.path, MANIFEST, revision=model.revision)).parent
    except LocalEntryNotFoundError as error:
        raise HubError(f"{model}: the Hub cannot be reached: {first_line(error)}", repo_id=model.path) from None
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise HubError(f"{model}: {first_line(error)}", repo_id=model.path) from None


def first_line(error: BaseException) -> str:
    """What another library's error says first, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
