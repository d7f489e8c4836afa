"""A repository of the Hub at one commit: what it holds, and copies of its files that are what it holds.

The client alone hands out an old copy when the Hub is down, and accepts a flipped byte. Here the commit is asked for
first, and a file that is not what the Hub lists is fetched once more and then refused. With ``HF_HUB_OFFLINE`` the
client's cache is read as it is. Nothing is written to the Hub.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from sftknow.artifacts.files import write_text
from sftknow.artifacts.manifests import MANIFEST
from sftknow.dependencies import needs
from sftknow.errors import HubError, RunError
from sftknow.models.hub_client import Connection, RepoType, Result, Subject
from sftknow.progress import progress
from sftknow.untrusted import load_json, shaped

with needs("huggingface_hub"):
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.hf_api import RepoFile

Content = Path | bytes | io.BufferedIOBase
"""What a file holds: a local file, the bytes themselves, or a file that is made as it is read."""

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

    def same_as(self, content: Content, *, size: int | None = None, sha256: str | None = None) -> bool:
        """True where local bytes are those of the Hub, by the hash that the Hub keeps.

        Args:
            content: a local file, bytes, or an open file.
            size, sha256: of the content where they are known already, which spares reading it again.
        """
        with opened(content) as file:
            size = file.seek(0, os.SEEK_END) if size is None else size
        if size != self.size:
            return False
        if self.sha256 is not None:
            return (sha256 or sha256_of(content)) == self.sha256
        return _git_sha1(content, size) == self.git_sha1


@dataclass(frozen=True, kw_only=True)
class Repo:
    """A repository at one commit.

    What reads it raises HubError where the Hub refuses, cannot be reached, or sends something else than it lists.
    """

    repo_id: str
    repo_type: RepoType
    commit: str | None
    """None offline where the cache does not tell it."""
    revision: str | None = None
    """What was asked for; None for the default branch."""
    offline: bool = False
    """True with ``HF_HUB_OFFLINE``: only the cache is read, which was wished for."""
    info: Any = field(default=None, compare=False, repr=False)
    """The Hub's own description; None offline."""
    link: Connection = field(default_factory=Connection.open, compare=False, repr=False)

    def ask(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call a method of the client that reads this repository."""
        subject = Subject(repo_id=self.repo_id, repo_type=self.repo_type, revision=self.revision, reading=True)
        return self.link.call(subject, function, *args, **kwargs)

    @cached_property
    def files(self) -> Mapping[str, RemoteFile]:
        """Every file by its path; not to be asked for offline."""
        return self.ask(list_files, self.link.api, self.repo_id, self.repo_type, str(self.commit))

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file by its path, sorted; offline of those in the cache."""
        if not self.offline:
            return {path: self.files[path].size for path in sorted(self.files)}
        folder = self.cached()
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}

    def file(self, path: str) -> Path | None:
        """A local copy of a file, or None where the repository (offline: the cache) has none of that name."""
        if self.offline:
            found = self._snapshot() / path if self.commit else None
            return found if found is not None and found.is_file() else None
        entry = self._entry(path)
        return None if entry is None else self._fetch(_remote_file(entry), None)

    def has(self, path: str) -> bool:
        """Whether the repository has a file of that name; not to be asked for offline."""
        return self._entry(path) is not None

    def _entry(self, path: str) -> Any:
        where: dict[str, Any] = {"revision": self.commit, "repo_type": self.repo_type}
        listed = self.ask(self.link.api.get_paths_info, self.repo_id, [path], **where)
        return next((entry for entry in listed if entry.path == path and isinstance(entry, RepoFile)), None)

    def json(self, path: str) -> Mapping[str, Any]:
        """The JSON object in a file; empty where there is none, and where it is damaged and so says nothing."""
        local = self.file(path)
        try:
            content = load_json(local, lenient=True) if local else {}
        except RunError:
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def hashes(self) -> Mapping[str, str]:
        """SHA-256 by path, as its ``sftknow.json`` has them; empty where it says nothing of use."""
        try:
            return shaped(self.json(MANIFEST).get("sha256") or {}, Mapping[str, str], MANIFEST)
        except RunError:
            return {}

    def download(self, paths: Iterable[str], local_dir: Path | None = None) -> Path:
        """The folder with these files, ``sftknow.json`` last, each compared with the Hub's hash as it arrives.

        Args:
            paths: of `sizes`.
            local_dir: where to put them; None leaves them in the client's cache, in a folder named after the commit,
                and notes there which commit the revision was, so that other programs find it offline.
        """
        if local_dir is not None:
            # While files change below it, the folder must not look whole.
            (local_dir / MANIFEST).unlink(missing_ok=True)
        if self.offline:
            folder = self.cached()
            return folder if local_dir is None else Path(shutil.copytree(folder, local_dir, dirs_exist_ok=True))
        wanted = [self.files[path] for path in sorted(paths, key=lambda path: (path == MANIFEST, path))]
        with progress(sum(file.size for file in wanted), f"Pulling {self.repo_id}", unit="B") as bar:
            bar.unit_scale = True
            for file in wanted:
                self._fetch(file, local_dir)
                bar.update(file.size)
        if local_dir is not None:
            return local_dir
        if self.revision != self.commit:
            write_text(_cache(self.repo_id, self.repo_type) / "refs" / (self.revision or "main"), str(self.commit))
        return self._snapshot()

    def _fetch(self, file: RemoteFile, local_dir: Path | None) -> Path:
        where: dict[str, Any] = {"repo_type": self.repo_type, "revision": self.commit, "local_dir": local_dir}
        for again in (False, True):
            download = self.link.api.hf_hub_download
            local = Path(self.ask(download, self.repo_id, file.path, force_download=again, **where))
            if file.same_as(local):
                return local
        local.resolve().unlink(missing_ok=True)
        local.unlink(missing_ok=True)
        raise HubError(
            f"{file.path} of {self.repo_id} arrives damaged (its hash is not the Hub's), twice; try again later",
            repo_id=self.repo_id,
        )

    def _snapshot(self) -> Path:
        return _cache(self.repo_id, self.repo_type) / "snapshots" / str(self.commit)

    def cached(self) -> Path:
        """The folder of the client's cache for this commit. Raises HubError where there is none."""
        if self.commit is None or not self._snapshot().is_dir():
            named = f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id
            text = f"{named} is not in the cache; unset HF_HUB_OFFLINE to fetch it"
            raise HubError(text, repo_id=self.repo_id, reason="offline")
        return self._snapshot()


def open_repo(repo_id: str, revision: str | None, repo_type: RepoType, *, link: Connection | None = None) -> Repo:
    """The repository at the commit that a revision stands for now; offline, at the one that the cache has for it.

    Args:
        repo_id: ``org/name``.
        revision: branch, tag or commit; None for the default branch.
        repo_type: ``model`` or ``dataset``.
        link: to ask over; None for the one of the environment.

    Raises:
        HubError: there is no such repository or revision, or the Hub does not say.
    """
    link = link or Connection.open()
    named: dict[str, Any] = {"repo_id": repo_id, "repo_type": repo_type, "revision": revision, "link": link}
    if constants.HF_HUB_OFFLINE:
        return Repo(**named, commit=_cached_commit(_cache(repo_id, repo_type), revision), offline=True)
    info = Repo(**named, commit=None).ask(link.api.repo_info, repo_id, revision=revision, repo_type=repo_type)
    return Repo(**named, commit=info.sha, info=info)


def _cache(repo_id: str, repo_type: RepoType) -> Path:
    """Where the client keeps a repository."""
    return Path(constants.HF_HUB_CACHE) / str(repo_folder_name(repo_id=repo_id, repo_type=repo_type))


def _cached_commit(folder: Path, revision: str | None) -> str | None:
    """The commit that the cache has for a revision; for none the default branch's, or the only one that is there."""
    ref = folder / "refs" / (revision or "main")
    if ref.is_file():
        return ref.read_text(encoding="utf-8").strip()
    snapshots = [path.name for path in (folder / "snapshots").glob("*")]
    return revision or (snapshots[0] if len(snapshots) == 1 else None)


def list_files(api: Any, repo_id: str, repo_type: str, commit: str) -> dict[str, RemoteFile]:
    """Every file of a repository at a commit, by path."""
    tree = api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=repo_type)
    return {entry.path: _remote_file(entry) for entry in tree if isinstance(entry, RepoFile)}


def _remote_file(entry: Any) -> RemoteFile:
    sha256 = entry.lfs.sha256 if entry.lfs is not None else None
    return RemoteFile(path=entry.path, size=entry.size, git_sha1=entry.blob_id, sha256=sha256)


@contextmanager
def opened(content: Content) -> Iterator[io.BufferedIOBase]:
    """The content as a file, at its beginning, and there again afterwards."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            yield file
    else:
        made = io.BytesIO(content) if isinstance(content, bytes) else content
        made.seek(0)
        try:
            yield made
        finally:
            made.seek(0)


def sha256_of(content: Content) -> str:
    """SHA-256 (hex) of what a file holds."""
    return _read_through(content, hashlib.sha256())


def _git_sha1(content: Content, size: int) -> str:
    # Git's own naming of blobs, no protection: the Hub gives nothing else for files outside LFS.
    return _read_through(content, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False))


def _read_through(content: Content, found: Any) -> str:
    with opened(content) as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return str(found.hexdigest())
