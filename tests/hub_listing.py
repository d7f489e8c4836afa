"""How a Hub lists repositories: by tags, which it also makes of a card's metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from tests.hub_store import HubStore, Repo

_HEAD = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)
_AS_TAGS = {
    "datasets": "dataset",
    "license": "license",
    "base_model": "base_model",
    "source_datasets": "source_datasets",
}
"""Fields of a card that become tags, and what stands before the colon."""


def card_of(hub: HubStore, repo: Repo) -> Mapping[str, Any]:
    """The metadata of the card on the default branch; empty where there is none."""
    commit = repo.resolve("main")
    blob = commit.files.get("README.md") if commit else None
    found = _HEAD.match(hub.object(blob.sha256).decode()) if blob else None
    head = yaml.safe_load(found[1]) if found else {}
    return head if isinstance(head, dict) else {}


def tags_of(card: Mapping[str, Any]) -> Iterator[str]:
    """The tags of a repository with this card."""
    yield from map(str, _listed(card.get("tags")))
    for field, name in _AS_TAGS.items():
        yield from (f"{name}:{value}" for value in _listed(card.get(field)))


def listed(hub: HubStore, kind: str, filters: Sequence[str], visible: Any) -> list[dict[str, Any]]:
    """What ``/api/models`` and ``/api/datasets`` answer: repositories that have every one of the tags."""
    found = []
    for (of_kind, repo_id), repo in sorted(hub.repos.items()):
        tags = list(tags_of(card_of(hub, repo)))
        if of_kind == kind and visible(repo_id, repo) and set(filters) <= set(tags):
            named = {"_id": "0", "id": repo_id, **({"modelId": repo_id} if kind == "model" else {})}
            found.append({**named, "private": repo.private, "tags": tags, "downloads": 0, "likes": 0})
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
