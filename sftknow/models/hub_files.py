"""Single files of Hub repositories, read at a commit and compared with the Hub's own hashes.

The client alone hands out an old copy when the Hub is down, and accepts a flipped byte. Here the commit is asked for
first, and a file that is not what the Hub lists is fetched once more and then refused. Nothing is written to the Hub.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sftknow.dependencies import needs
from sftknow.errors import HubError

with needs("huggingface_hub"):
    from huggingface_hub.file_download import repo_folder_name

Answer = TypeVar("Answer")
RepoType = Literal["model", "dataset"]

_WAITS = (1.0, 3.0)
"""Seconds before the second and the third try."""
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_NAMES: dict[RepoType, str] = {"model": "model", "dataset": "data set"}


@dataclass(frozen=True, kw_only=True)
class Repo:
    """A repository at one commit."""

    repo_id: str
    repo_type: RepoType
    commit: str | None
    """None offline where the cache was asked for no particular commit."""
    offline: bool = False
    """True with ``HF_HUB_OFFLINE``: only the cache is read, which was wished for."""

    def file(self, path: str) -> Path | None:
        """A local copy of a file, or None where the repository has none of that name.

        Raises:
            HubError: the Hub refused, could not be reached, or sends something else than it lists.
        """
        api = HfApi()

        def fetch(again: bool) -> Path | None:
            try:
                return Path(
                    api.hf_hub_download(
                        self.repo_id,
                        path,
                        repo_type=self.repo_type,
                        revision=self.commit,
                        force_download=again,
                        local_files_only=self.offline,
                    )
                )
            except LocalEntryNotFoundError:
                if self.offline:
                    return None
                raise
            except EntryNotFoundError:
                return None

        if self.offline:
            return _asking(self, lambda: fetch(False))
        listed = _asking(self, lambda: _listed(api, self, path))
        if listed is None:
            return None
        for again in (False, True):
            local = _asking(self, lambda again=again: fetch(again))  # type: ignore[misc]
            if local is not None and _same(local, listed):
                return local
        raise HubError(
            f"{path} of {self.repo_id} arrives damaged (its hash is not the Hub's), twice; try again later",
            repo_id=self.repo_id,
        )


def open_repo(repo_id: str, revision: str | None, repo_type: RepoType) -> Repo:
    """The repository at the commit that a revision stands for now.

    Raises:
        HubError: there is no such repository or revision, or the Hub does not say.
    """
    if constants.HF_HUB_OFFLINE:
        commit = _cached_commit(repo_id, revision, repo_type)
        return Repo(repo_id=repo_id, repo_type=repo_type, commit=commit, offline=True)
    unresolved = Repo(repo_id=repo_id, repo_type=repo_type, commit=revision)
    info = _asking(unresolved, lambda: HfApi().repo_info(repo_id, revision=revision, repo_type=repo_type))
    return Repo(repo_id=info.id or repo_id, repo_type=repo_type, commit=info.sha)


def _cached_commit(repo_id: str, revision: str | None, repo_type: RepoType) -> str | None:
    """The commit that the cache has for a revision; for none the default branch's, or the only one that is there."""
    folder = Path(str(constants.HF_HUB_CACHE)) / str(repo_folder_name(repo_id=repo_id, repo_type=repo_type))
    ref = folder / "refs" / (revision or "main")
    if ref.is_file():
        return ref.read_text(encoding="utf-8").strip()
    snapshots = [path.name for path in (folder / "snapshots").glob("*")]
    return revision or (snapshots[0] if len(snapshots) == 1 else None)


def _patiently(ask: Callable[[], Answer]) -> Answer:
    """Ask again, twice, where the Hub is overloaded or the connection broke."""
    for wait in _WAITS:
        try:
            return ask()
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code not in _TRANSIENT:
                raise
        except HTTPError:
            pass
        time.sleep(wait)
    return ask()


def _asking(repo: Repo, ask: Callable[[], Answer]) -> Answer:
    """Ask, and turn what the client raises into one line."""
    kind = _NAMES[repo.repo_type]
    try:
        return _patiently(ask)
    except RevisionNotFoundError:
        message = f"the {kind} {repo.repo_id} has no revision {repo.commit} on the Hub"
    except RepositoryNotFoundError:
        message = (
            f"there is no {kind} {repo.repo_id} on the Hub, or this token may not see it: check the name, or run "
            "`hf auth login`"
        )
    except HFValidationError as error:
        message = f"{repo.repo_id} is no name that the Hub knows: {first_line(error)}"
    except HfHubHTTPError as error:
        message = f"the Hub refused to show the {kind} {repo.repo_id}: {first_line(error)}"
    except (OSError, ValueError, HTTPError) as error:
        message = f"the {kind} {repo.repo_id} cannot be read, the Hub cannot be reached: {first_line(error)}"
    raise HubError(message, repo_id=repo.repo_id) from None


def _listed(api: Any, repo: Repo, path: str) -> Any:
    found = api.get_paths_info(repo.repo_id, [path], revision=repo.commit, repo_type=repo.repo_type)
    return next((entry for entry in found if entry.path == path), None)


def _same(local: Path, listed: Any) -> bool:
    content = local.read_bytes()
    if len(content) != listed.size:
        return False
    if listed.lfs is not None:
        return hashlib.sha256(content).hexdigest() == str(listed.lfs.sha256)
    # Git's own naming of blobs, no protection: the Hub gives nothing else for files outside LFS.
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return blob.hexdigest() == str(listed.blob_id)


def first_line(error: BaseException) -> str:
    """What another library's error says first, for a message of one line."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
