"""``sftknow.json``: what a folder is, written last, so that a folder with it is whole.

It lies beside the weights of every model that sftknow writes and at the root of every graded data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sftknow.artifacts.files import read_json, write_json
from sftknow.errors import RunError

MANIFEST = "sftknow.json"
FORMAT = 1


def write_manifest(folder: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write the manifest of a ``model`` or a ``mastery-dataset``. Call it after everything else is in place."""
    own = {"sftknow": FORMAT, "kind": kind}
    write_json(folder / MANIFEST, {**own, **content, **own})


def read_manifest(folder: Path, kind: str) -> dict[str, Any] | None:
    """The manifest of a folder, or None where it has none.

    Raises:
        RunError: it is damaged, of another kind, or from a newer sftknow.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    manifest = read_json(path)
    if not isinstance(manifest, dict) or "sftknow" not in manifest:
        raise RunError(f"{path} is not a manifest of sftknow")
    if manifest["sftknow"] > FORMAT:
        raise RunError(f"{path} was written by a newer sftknow; upgrade with: pip install -U sftknow")
    if manifest.get("kind") != kind:
        raise RunError(f"{folder} holds a {manifest.get('kind')}, not a {kind}")
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
    local = Path(named["path"])
    return str(local if local.is_absolute() else (folder / local).resolve()), None
