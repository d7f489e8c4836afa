"""A Collection of the Hub: everything that was published of a run on one page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sftknow.errors import HubError
from sftknow.models.hub_client import Connection, Patience, Subject
from sftknow.publishing.receipts import PublishReceipt


def collect(
    receipts: Iterable[PublishReceipt],
    *,
    title: str,
    private: bool = True,
    endpoint: str | None = None,
    token: str | None = None,
    patience: Patience | None = None,
) -> str:
    """Put repositories into the Collection of this title, which is made where there is none. What is in it stays.

    Args:
        receipts: of `sftknow.run.publishing.publish_run`; several branches of one repository are one entry.
        title: of the Collection of the repositories' owner.
        private: who may see it, where it is made.
        endpoint, token, patience: of the Hub, as for `publish`.

    Returns:
        The Collection's address.

    Raises:
        HubError: the Hub refused, or the Collection is there and public where it should be private, or the other way
            round. What was published stays, and the same call again finishes.
    """
    link = Connection.open(endpoint=endpoint, token=token, patience=patience)
    items = list(dict.fromkeys((receipt.repo_id, receipt.repo_type) for receipt in receipts))
    owner = items[0][0].partition("/")[0]
    named = f"the Collection {title!r} of {owner}"
    about = Subject(repo_id=named)
    found: Any = link.call(about, link.api.create_collection, title, namespace=owner, private=private, exists_ok=True)
    if found.private != private:
        is_now, way_out = ("private", "without --public") if found.private else ("public", "with --public")
        raise HubError(f"{named} is there already and is {is_now}: publish {way_out}, or change it at {found.url}")
    there = {(item.item_id, item.item_type) for item in found.items}
    for repo_id, kind in items:
        if (repo_id, kind) not in there:
            link.call(about, link.api.add_collection_item, found.slug, repo_id, kind, exists_ok=True)
    return str(found.url)
