"""A look at a model on the Hub: how large it is and how it is stored, without fetching its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from sftknow.errors import HubError
from sftknow.models.hub_client import BRIEF, Connection, check_repo_id
from sftknow.models.hub_files import Repo, open_repo
from sftknow.models.pull import no_safetensors
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
    try:
        repo = open_repo(ref.path, ref.revision, "model", link=Connection.open(patience=BRIEF))
        sizes = repo.sizes
    except HubError as error:
        if error.reason in ("missing", "revision", "name"):
            raise
        raise UnreachableError(str(error)) from None
    weights = {path: size for path, size in sizes.items() if path.endswith(".safetensors")}
    if not weights and repo.offline:
        raise UnreachableError(f"the weights of {ref.path} are not in the cache, and HF_HUB_OFFLINE is set")
    if not weights:
        raise no_safetensors(ref.path)
    here = {path: try_to_load_from_cache(ref.path, path, revision=repo.commit) for path in (*weights, "config.json")}
    whole = all(isinstance(file, str) for file in here.values())
    return RemoteModel(
        name=f"{ref.path}@{repo.commit}",
        weights=sum(weights.values()),
        other_files=sum(size for path, size in sizes.items() if path.endswith((".json", ".model", ".txt", ".jinja"))),
        dtype=_dtype(repo),
        cached=Path(str(here["config.json"])).parent if whole else None,
    )


def _dtype(repo: Repo) -> str | None:
    try:
        config = repo.json("config.json")
    except HubError:
        return None  # gated, or gone meanwhile: the size is what was asked for
    inner = config.get("text_config", config)
    named = [place.get(key) for place in (inner, config) for key in ("dtype", "torch_dtype")]
    return next((str(name) for name in named if name), None)
