"""A look at a model on the Hub: how large it is and how it is stored, without fetching its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from sftknow.errors import HubError
from sftknow.models.hub_client import Connection, check_repo_id, explain, quiet
from sftknow.models.remote import list_files
from sftknow.records import ModelRef


@dataclass(frozen=True, kw_only=True)
class RemoteModel:
    """What the Hub says of a model."""

    name: str
    """``org/name@commit``."""
    weights: int
    """Bytes of its safetensors files."""
    other_files: int
    """Bytes of the others that a pull would fetch."""
    dtype: str | None
    """What its config names; None where it names none or may not be read."""
    cached: Path | None
    """The folder of the Hub's cache that holds all of its weights; None where they would have to be fetched."""


class UnreachableError(Exception):
    """The Hub did not answer, or not to us. ``str(error)`` is one line."""


def look(ref: ModelRef) -> RemoteModel:
    """Ask the Hub about a model.

    Raises:
        HubError: it has no such repository or revision.
        UnreachableError: it cannot be asked now; the name may be right.
    """
    check_repo_id(ref.path)
    link = Connection.open()
    try:
        with quiet():
            commit = link.api.model_info(ref.path, revision=ref.revision).sha
            files = list_files(link.api, ref.path, "model", commit)
    except GatedRepoError as error:
        raise UnreachableError(str(explain(error, ref.path))) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise explain(error, ref.path) from None
    except Exception as error:
        raise UnreachableError(str(explain(error, ref.path))) from None
    weights = {path: file.size for path, file in files.items() if path.endswith(".safetensors")}
    if not weights:
        raise HubError(
            f"{ref.path} has no safetensors weights, and other formats are never loaded: ask its owner to convert",
            repo_id=ref.path,
        )
    here = {path: try_to_load_from_cache(ref.path, path, revision=commit) for path in (*weights, "config.json")}
    whole = all(isinstance(file, str) for file in here.values())
    return RemoteModel(
        name=f"{ref.path}@{commit}",
        weights=sum(weights.values()),
        other_files=sum(files[path].size for path in files if path.endswith((".json", ".model", ".txt", ".jinja"))),
        dtype=_dtype(link, ref.path, commit),
        cached=Path(str(here["config.json"])).parent if whole else None,
    )


def _dtype(link: Connection, repo_id: str, commit: str) -> str | None:
    try:
        with quiet():
            config: Any = json.loads(
                Path(link.api.hf_hub_download(repo_id, "config.json", revision=commit)).read_text()
            )
    except Exception:
        return None  # gated, or gone meanwhile: the size is what was asked for
    inner = config.get("text_config", config)
    named = [place.get(key) for place in (inner, config) for key in ("dtype", "torch_dtype")]
    return next((str(name) for name in named if name), None)
