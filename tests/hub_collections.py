"""Collections of a Hub: a title and entries, each there once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tests.hub_store import HubStore


def collection(hub: HubStore, method: str, slug: str, action: str, asked: Mapping[str, Any]) -> tuple[int, Any]:
    """Status and body of a call below ``/api/collections``; the caller has seen to it that it may be made."""
    if method == "POST" and not slug:
        plain = re.sub(r"[^a-z0-9]+", "-", asked["title"].lower()).strip("-")
        slug = f"{asked['namespace']}/{plain}-{len(hub.collections):024x}"
        for known, there in hub.collections.items():
            if (there["title"], there["owner"]["name"]) == (asked["title"], asked["namespace"]):
                return 409, {"error": "This collection already exists", "slug": known}
        told = {"slug": slug, "title": asked["title"], "private": asked["private"], "items": [], "upvotes": 0}
        owner = {"type": "org", "name": asked["namespace"]}
        last = {"lastUpdated": "2026-01-01T00:00:00.000Z", "position": 0, "theme": "orange"}
        hub.collections[slug] = {**told, **last, "owner": owner}
    elif slug not in hub.collections:
        return 404, {"error": "Collection not found"}
    elif action == "items":
        items, item = hub.collections[slug]["items"], asked["item"]
        if (item["type"], item["id"]) not in hub.repos:
            return 404, {"error": "Repository not found"}
        if any((one["id"], one["type"]) == (item["id"], item["type"]) for one in items):
            return 409, {"error": "This item is already in the collection"}
        items.append({"_id": f"{len(items):024x}", "position": len(items), **item})
    return 200, hub.collections[slug]
