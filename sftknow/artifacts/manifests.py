"""``sftknow.json``: what a folder is, written last, so that a folder with it is whole.

It lies beside the weights of every model that sftknow writes and at the root of every graded data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from sftknow.artifacts.files import read_json, write_json
from sftknow.errors import RunError
from sftknow.untrusted import shaped

MANIFEST = "sftknow.json"
FORMAT = 1


class _Named(TypedDict, total=False):
    """A model or a data set, as a manifest names it."""

    path: str | None
    repo: str | None
    revision: str | None
    fingerprint: str | None
    sha256: str | None


class _Training(TypedDict, total=False):
    fact_ids: list[str] | None


class _Kept(TypedDict, total=False):
    bytes: int
    count: int


class _Manifest(TypedDict, total=False):
    """What sftknow reads of a manifest. What else is in it only people read."""

    sftknow: int
    kind: str | None
    base: _Named | str | None
    mastery_dataset: _Named | None
    sft: _Training | None
    draw: Mapping[str, Any] | None
    restoration: Mapping[str, Any] | None
    sha256: Mapping[str, str] | None
    """By file, of a published folder."""
    fingerprint: str
    graded_by: str
    counts: Mapping[str, Mapping[str, int]]
    continuations: _Kept | None


def write_manifest(folder: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write the manifest of a ``model`` or a ``mastery-dataset``. Call it after everything else is in place."""
    own = {"sftknow": FORMAT, "kind": kind}
    write_json(folder / MANIFEST, {**own, **content, **own})


def read_manifest(folder: Path, kind: str) -> dict[str, Any] | None:
    """The manifest of a folder, or None where it has none.

    Raises:
        RunError: it is damaged, of another kind, or from a newer sftknow.
    """
    if not (folder / MANIFEST).is_file():
        return None
    manifest = load_manifest(folder)
    if manifest.get("kind") != kind:
        raise RunError(f"{folder} holds a {manifest.get('kind')}, not a {kind}")
    return manifest


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, of whatever kind. What is known of it has the type that it should have.

    Raises:
        RunError: it is missing, damaged, or from a newer sftknow.
    """
    path = folder / MANIFEST
    found = read_json(path)
    if not isinstance(found, dict) or "sftknow" not in found:
        raise RunError(f"{path} is not a manifest of sftknow")
    way_out = "copy or make the folder again"
    manifest: dict[str, Any] = shaped(found, _Manifest, path, way_out=way_out)
    if manifest["sftknow"] > FORMAT:
        raise RunError(f"{path} was written by a newer sftknow; install that version")
    return manifest


def dataset_of_model(folder: Path) -> tuple[str, str | None] | None:
    """The graded data set that a local model names: (folder or Hub id, revision), or None.

    A relative path in the manifest is relative to the model's folder, so that a run directory can be moved.
    """
    manifest = read_manifest(folder, "model")
    named = (manifest or {}).get("mastery_dataset")
    if not named:
        return None
    if named.get("repo"):
        return named["repo"], named.get("revision")
    if not named.get("path"):
        return None
    local = Path(named["path"])
    return str(local if local.is_absolute() else (folder / local).resolve()), None
