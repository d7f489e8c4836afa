"""What a publication leaves on the Hub."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PublishReceipt:
    """What a publication left on the Hub."""

    repo_id: str
    repo_type: str
    revision: str
    """Commit hash."""
    files: tuple[str, ...]
    url: str
