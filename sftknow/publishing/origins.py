"""What a publication has to ask the Hub: commits of what was named without one, licences of what lies there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import (
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sftknow.errors import HubError
from sftknow.models.hub_client import Connection
from sftknow.models.pull import RepoType, resolve
from sftknow.models.remote import read_remote_manifest
from sftknow.publishing.cards import Licence, Source
from sftknow.publishing.contexts import licence_of_model, named_source, source_of
from sftknow.publishing.licences import Papers, is_paper, licence_from
from sftknow.publishing.runs import whole_manifest

_COMMIT = re.compile(r"[0-9a-f]{40}")

_LARGEST_PAPER = 2**20
"""Bytes; a longer file is no licence."""

_NOT_TO_BE_SEEN = (GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError)


def pinned(name: str, repo_type: RepoType, link: Connection) -> str:
    """``org/name[@revision]`` with its revision as a commit. Raises HubError where it is not on the Hub."""
    source = named_source(name)
    if source.revision and _COMMIT.fullmatch(source.revision):
        return name
    return f"{source.name}@{resolve(name, repo_type=repo_type, link=link).commit}"


def pinned_dataset(name: str, manifest: Mapping[str, Any], link: Connection) -> str:
    """A graded data set with its commit, after a comparison with the one that the model was made from.

    Raises:
        HubError: it is not there, or is another data set than the model's manifest says.
    """
    source = named_source(name)
    if source.revision and _COMMIT.fullmatch(source.revision):
        return name
    found = resolve(name, repo_type="dataset", link=link)
    there = link.call(
        found.repo_id, lambda: read_remote_manifest(link.api, found.repo_id, "dataset", found.commit)
    ).get("fingerprint")
    own = (manifest.get("mastery_dataset") or {}).get("fingerprint")
    if own and there != own:
        raise HubError(
            f"{name} is not the graded data set that this model was made and scored with (its fingerprint differs); "
            "publish that one first, or name the revision that holds it",
            repo_id=found.repo_id,
        )
    return f"{found.repo_id}@{found.commit}"


def base_on_the_hub(
    folder: Path, manifest: Mapping[str, Any], base_repo: str | None, link: Connection
) -> tuple[Licence | None, Papers]:
    """Licence and licence files of a base model on the Hub; nothing where there is none that may be seen."""
    base: Source = named_source(base_repo) if base_repo else source_of(manifest.get("base"), folder)
    hub_id = base.hub_id
    if hub_id is None:
        return None, Papers()

    def fetch() -> tuple[Licence | None, Papers]:
        try:
            info = link.api.model_info(hub_id, revision=base.revision)
            names = [entry.rfilename for entry in info.siblings or () if is_paper(entry.rfilename)]
            files = {}
            for name in names:
                local = Path(link.api.hf_hub_download(hub_id, name, revision=info.sha))
                if local.stat().st_size <= _LARGEST_PAPER:
                    files[name] = local.read_bytes()
        except _NOT_TO_BE_SEEN:
            # The way out is the same for all: the user names the licence, and gives its text where that is wanted.
            return None, Papers()
        return (licence_from(info.card_data.to_dict()) if info.card_data else None), Papers(files=files)

    return link.call(hub_id, fetch)


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

    def fetch() -> Licence | None:
        try:
            info = link.api.dataset_info(repo_id, revision=revision)
        except _NOT_TO_BE_SEEN:
            return None
        return licence_from(info.card_data.to_dict()) if info.card_data else None

    return link.call(repo_id, fetch)
