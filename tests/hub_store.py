"""What a Hub keeps: repositories with commits, branches and tags, and the contents of files by their SHA-256."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Account:
    """Who a token belongs to."""

    user: str
    role: Literal["read", "write"]
    orgs: tuple[str, ...] = ("org",)


@dataclass(frozen=True)
class Blob:
    """A file's content in one commit."""

    sha256: str
    git_sha1: str
    size: int
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_sha1


@dataclass(frozen=True)
class Commit:
    sha: str
    title: str
    files: Mapping[str, Blob]
    parent: str | None


@dataclass
class Repo:
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> Commit | None:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(sha)

    def history(self, revision: str) -> list[Commit]:
        """Newest first."""
        commit, found = self.resolve(revision), []
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent) if commit.parent else None
        return found


class HubStore:
    """Accounts, repositories and file contents.

    Attributes:
        accounts: by token.
        repos: by (``model`` or ``dataset``, ``org/name``).
        collections: as the Hub describes them, by slug.
        lock: held while a request changes anything.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.accounts = {
            "hf_test": Account("tester", "write"),
            "hf_read": Account("reader", "read"),
            "hf_other": Account("stranger", "write", orgs=()),
        }
        self.repos: dict[tuple[str, str], Repo] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.lock = threading.RLock()
        (folder / "objects").mkdir(parents=True, exist_ok=True)

    def read(self, kind: str, repo_id: str, path: str, revision: str = "main") -> bytes:
        """A file as it is on the Hub. Raises KeyError where it is not."""
        commit = self.repos[kind, repo_id].resolve(revision)
        if commit is None:
            raise KeyError(revision)
        return self.object(commit.files[path].sha256)

    def object(self, sha256: str) -> bytes:
        return (self.folder / "objects" / sha256).read_bytes()

    def store(self, content: bytes, *, lfs: bool) -> Blob:
        sha256 = hashlib.sha256(content).hexdigest()
        (self.folder / "objects" / sha256).write_bytes(content)
        git_sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return Blob(sha256, git_sha1, len(content), lfs)

    def put(self, kind: str, repo_id: str, files: Mapping[str, bytes], *, private: bool = False) -> str:
        """Put files into a repo from outside, as another person would; return the commit."""
        with self.lock:
            repo = self.repos.get((kind, repo_id)) or self.create(kind, repo_id, private=private)
            blobs = {path: self.store(content, lfs=is_lfs(path, len(content))) for path, content in files.items()}
            head = repo.resolve("main")
            return self.commit(repo, "main", {**(head.files if head else {}), **blobs}, "put")

    def create(self, kind: str, repo_id: str, *, private: bool) -> Repo:
        repo = self.repos[kind, repo_id] = Repo(private=private)
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        first = {".gitattributes": attributes, **(_NEW_SPACE if kind == "space" else {})}
        self.commit(repo, "main", {p: self.store(c, lfs=False) for p, c in first.items()}, "initial commit")
        return repo

    def commit(self, repo: Repo, branch: str, files: Mapping[str, Blob], title: str) -> str:
        parent = repo.branches.get(branch)
        seed = json.dumps([parent, title, sorted((p, b.sha256) for p, b in files.items()), time.time_ns(), id(repo)])
        sha = hashlib.sha1(seed.encode()).hexdigest()
        repo.commits[sha] = Commit(sha, title, dict(files), parent)
        repo.branches[branch] = sha
        return sha


_NEW_SPACE = {
    "README.md": b"---\ntitle: X\nemoji: X\nsdk: static\n---\n\nCheck out the configuration reference\n",
    "index.html": b"<h1>Welcome to your static Space!</h1>\n",
    "style.css": b"body { padding: 2rem; }\n",
}
"""What the Hub puts into a new static Space."""


def is_lfs(path: str, size: int) -> bool:
    """What the Hub stores as LFS: large files, and some kinds by their name."""
    return size > 10_000_000 or path.endswith((".safetensors", ".parquet", ".bin", ".pt"))
