"""What a publication has to ask the Hub: commits of what was named without one, licences of what lies there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sftknow.artifacts.manifests import MANIFEST
from sftknow.errors import HubError
from sftknow.models.hub_client import Connection, RepoType
from sftknow.models.hub_files import Repo, open_repo
from sftknow.models.pull import resolve
from sftknow.publishing.cards import Licence, Source
from sftknow.publishing.contexts import licence_of_model, named_source, source_of
from sftknow.publishing.licences import Papers, is_paper, licence_from
from sftknow.publishing.runs import whole_manifest

_COMMIT = re.compile(r"[0-9a-f]{40}")

_LARGEST_PAPER = 2**20
"""Bytes; a longer file is no licence."""

_NOT_TO_BE_SEEN = ("gated", "offline", "missing", "revision")
"""Reasons after which the way out is always the same: the user names the licence, and gives its text where wanted."""


def standing(repo_id: str, repo_type: RepoType, link: Connection) -> dict[str, Repo]:
    """The branches of a repository that hold something that was published, by name; none where it is not there."""
    at: dict[str, Any] = {"repo_id": repo_id, "repo_type": repo_type, "link": link}
    try:
        refs = Repo(**at, commit=None).ask(link.api.list_repo_refs, repo_id, repo_type=repo_type)
        found = {b.name: Repo(**at, commit=b.target_commit, revision=b.name) for b in refs.branches}
        # A branch that was made and never filled has no manifest.
        return {name: repo for name, repo in found.items() if repo.has(MANIFEST)}
    except HubError as error:
        if error.reason == "missing":
            return {}
        raise


def pinned(name: str, repo_type: RepoType, link: Connection, *, fingerprint: str | None = None) -> str:
    """``org/name[@revision]`` with its revision as a commit.

    Args:
        name: as the user gave it; with a commit it is returned as it is.
        repo_type: ``model`` or ``dataset``.
        link: to the Hub.
        fingerprint: of the graded data set that it has to be.

    Raises:
        HubError: it is not there, or is another data set.
    """
    source = named_source(name)
    if source.revision and _COMMIT.fullmatch(source.revision):
        return name
    found = resolve(name, repo_type=repo_type, link=link)
    if fingerprint and found.json(MANIFEST).get("fingerprint") != fingerprint:
        raise HubError(
            f"{name} is not the graded data set that this model was made and scored with (its fingerprint differs); "
            "publish that one first, or name the revision that holds it",
            repo_id=found.repo_id,
        )
    return f"{found.repo_id}@{found.commit}"


def pinned_dataset(name: str, manifest: Mapping[str, Any], link: Connection) -> str:
    """`pinned` for the graded data set that a model's manifest names."""
    return pinned(name, "dataset", link, fingerprint=(manifest.get("mastery_dataset") or {}).get("fingerprint"))


def base_on_the_hub(
    folder: Path, manifest: Mapping[str, Any], base_repo: str | None, link: Connection
) -> tuple[Licence | None, Papers]:
    """Licence and licence files of a base model on the Hub; nothing where there is none that may be seen."""
    base: Source = named_source(base_repo) if base_repo else source_of(manifest.get("base"), folder)
    hub_id = base.hub_id
    if hub_id is None:
        return None, Papers()

    try:
        repo = open_repo(hub_id, base.revision, "model", link=link)
        names = [path for path, size in repo.sizes.items() if is_paper(path) and size <= _LARGEST_PAPER]
        local = {name: repo.file(name) for name in names}
    except HubError as error:
        if error.reason in _NOT_TO_BE_SEEN:
            return None, Papers()
        raise
    return _card_licence(repo), Papers(files={name: path.read_bytes() for name, path in local.items() if path})


def _card_licence(repo: Repo) -> Licence | None:
    card = repo.info.card_data if repo.info else None
    return licence_from(card.to_dict()) if card else None


def licence_of_base(folder: Path, base_repo: str | None, link: Connection) -> Licence | None:
    """The licence of a model's base, wherever it is; None where nothing names it."""
    manifest = whole_manifest(folder)
    local = None if base_repo else licence_of_model(folder, manifest)
    return local or base_on_the_hub(folder, manifest, base_repo, link)[0]


def licence_of_source(manifest: Mapping[str, Any], link: Connection) -> Licence | None:
    """The licence of the data set on the Hub that the facts come from; None where they come from elsewhere."""
    facts = manifest.get("facts")
    source = facts.get("source") if isinstance(facts, Mapping) else None
    if not isinstance(source, str) or "@" not in source or licence_from(facts or {}) or licence_from(manifest):
        return None
    repo_id, _, revision = source.partition("@")
    if repo_id.count("/") != 1 or Path(source).exists():
        return None

    try:
        return _card_licence(open_repo(repo_id, revision, "dataset", link=link))
    except HubError as error:
        if error.reason in _NOT_TO_BE_SEEN:
            return None
        raise
