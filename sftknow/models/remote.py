"""A repository as it stands at one commit: names, sizes and hashes, and whether local bytes are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftknow.artifacts.files import file_sha256
from sftknow.artifacts.manifests import MANIFEST
from sftknow.dependencies import needs

with needs("huggingface_hub"):
    from huggingface_hub.hf_api import RepoFile

_BLOCK = 2**20


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a repository at one commit."""

    path: str
    size: int
    """Bytes."""
    git_sha1: str
    """Hash that git gives the file; of the pointer where the content is kept as LFS."""
    sha256: str | None
    """Hash of the content where it is kept as LFS, else None."""

    def same_as(self, content: Path | bytes, *, sha256: str | None = None) -> bool:
        """True where local bytes are those of the Hub, by the hash that the Hub keeps.

        Args:
            content: a local file, or bytes.
            sha256: of the content where it is known already, which spares reading it again.
        """
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if size != self.size:
            return False
        if self.sha256 is not None:
            return (sha256 or sha256_of(content)) == self.sha256
        return _git_sha1(content, size) == self.git_sha1


def list_files(api: Any, repo_id: str, repo_type: str, commit: str) -> dict[str, RemoteFile]:
    """Every file of a repository at a commit, by path."""
    tree = api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=repo_type)
    return {
        entry.path: RemoteFile(
            path=entry.path,
            size=entry.size,
            git_sha1=entry.blob_id,
            sha256=entry.lfs.sha256 if entry.lfs is not None else None,
        )
        for entry in tree
        if isinstance(entry, RepoFile)
    }


def read_remote_manifest(api: Any, repo_id: str, repo_type: str, commit: str) -> Mapping[str, Any]:
    """The ``sftknow.json`` of a repository at a commit; empty where it is damaged, and so says nothing."""
    path = Path(api.hf_hub_download(repo_id, MANIFEST, revision=commit, repo_type=repo_type))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def sha256_of(content: Path | bytes) -> str:
    """SHA-256 (hex) of a file or of bytes."""
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else file_sha256(content)


def _git_sha1(content: Path | bytes, size: int) -> str:
    # Git's own naming of blobs, no protection: the Hub gives nothing else for files outside LFS.
    found = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    if isinstance(content, bytes):
        found.update(content)
        return found.hexdigest()
    with content.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
