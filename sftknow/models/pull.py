"""Pulling: a revision becomes a commit, every file is compared with the Hub's hashes, nothing stale is used silently.

The client alone accepts a flipped byte, and hands out an old copy when the Hub is down. Here the commit is asked for
first, and what cannot be asked or does not agree is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import RepositoryNotFoundError

from sftknow.artifacts.files import read_json
from sftknow.artifacts.manifests import MANIFEST, read_manifest
from sftknow.artifacts.mastery_data import KIND
from sftknow.errors import HubError
from sftknow.models.hub_client import Connection, Patience, check_repo_id, quiet
from sftknow.models.remote import RemoteFile, list_files, sha256_of
from sftknow.progress import progress
from sftknow.records import ModelRef

RepoType = Literal["model", "dataset"]

RESULTS = "results"
"""Kind of a published run's results, in the manifest."""

_NOT_FETCHED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".tflite", ".ot")
"""Weights in formats that sftknow never loads: pickles, and copies for other programs."""


@dataclass(frozen=True, kw_only=True)
class ResolvedRepo:
    """A repository at one commit."""

    repo_id: str
    repo_type: RepoType
    commit: str


def pull(
    repo_id_with_revision: str,
    *,
    repo_type: RepoType | None = None,
    local_dir: Path | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    patience: Patience | None = None,
) -> Path:
    """Fetch a model or a graded data set and make sure that it is whole and as it lies on the Hub.

    Args:
        repo_id_with_revision: ``org/name`` or ``org/name@branch-tag-or-commit``.
        repo_type: None finds out, and asks where a model and a data set have the same name.
        local_dir: where to put it: a new or empty folder, or that of an earlier pull. None uses the Hub's cache, in a
            folder named after the commit.
        endpoint, token, patience: of the Hub, as for `publish`.

    Returns:
        The folder with the files.

    Raises:
        HubError: the Hub refused, could not be reached, or what arrived is not what it lists; a graded data set
            without ``sftknow.json``, which is unfinished or none; a model without safetensors weights.
    """
    link = Connection.open(endpoint=endpoint, token=token, patience=patience)
    with quiet():
        found = resolve(repo_id_with_revision, repo_type=repo_type, link=link)
        listed = link.call(found.repo_id, list_files, link.api, found.repo_id, found.repo_type, found.commit)
        wanted = {path: file for path, file in listed.items() if not path.endswith(_NOT_FETCHED)}
        _check_listing(found, wanted)
        if local_dir is not None:
            _check_folder(local_dir, wanted, found)
        folder = _fetch(link, found, wanted, local_dir)
    _check_manifest(folder, found)
    return folder


_SNAPSHOT = re.compile(
    r"(?P<kind>models|datasets)--(?P<owner>[^/]+?)--(?P<name>[^/]+?)/snapshots/(?P<commit>[0-9a-f]{40})/?$"
)


def origin(folder: str | Path) -> ResolvedRepo | None:
    """The repository and commit that a folder of the Hub's cache holds; None for any other folder."""
    found = _SNAPSHOT.search(str(folder))
    if found is None:
        return None
    kind: RepoType = "model" if found["kind"] == "models" else "dataset"
    return ResolvedRepo(repo_id=f"{found['owner']}/{found['name']}", repo_type=kind, commit=found["commit"])


def resolve(repo_id_with_revision: str, *, repo_type: RepoType | None, link: Connection) -> ResolvedRepo:
    """The commit that a revision stands for now. Raises HubError where the Hub does not say."""
    ref = ModelRef.parse(repo_id_with_revision)
    check_repo_id(ref.path)

    def look(kind: RepoType) -> Any:
        try:
            return link.api.repo_info(ref.path, repo_type=kind, revision=ref.revision)
        except RepositoryNotFoundError:
            if repo_type is not None:
                raise
            return None

    kinds: tuple[RepoType, ...] = (repo_type,) if repo_type else ("model", "dataset")
    found = {kind: info for kind in kinds if (info := link.call(ref.path, look, kind)) is not None}
    if len(found) > 1:
        raise HubError(f"{ref.path} is both a model and a data set: say which with --type", repo_id=ref.path)
    for kind, info in found.items():
        return ResolvedRepo(repo_id=ref.path, repo_type=kind, commit=info.sha)
    raise HubError(
        f"{ref.path} is not on the Hub, or this token may not see it: check the name, or run `hf auth login`",
        repo_id=ref.path,
    )


def _check_listing(found: ResolvedRepo, wanted: Mapping[str, RemoteFile]) -> None:
    if found.repo_type == "dataset" and MANIFEST not in wanted:
        raise HubError(
            f"{found.repo_id} has no sftknow.json: it is no graded data set, or its upload did not finish",
            repo_id=found.repo_id,
        )
    if found.repo_type == "model" and not any(path.endswith(".safetensors") for path in wanted):
        raise HubError(
            f"{found.repo_id} has no safetensors weights, and other formats are never loaded: ask its owner to convert",
            repo_id=found.repo_id,
        )


def _check_folder(folder: Path, wanted: Mapping[str, RemoteFile], found: ResolvedRepo) -> None:
    if folder.exists() and not folder.is_dir():
        raise HubError(f"{folder} is a file; give a folder for {found.repo_id}", repo_id=found.repo_id)
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} if folder.is_dir() else set()
    other = sorted(path for path in there if path not in wanted and not path.startswith(".cache/"))
    if other:
        raise HubError(
            f"{folder} holds files that are not in {found.repo_id} ({', '.join(other[:3])}): give an empty folder",
            repo_id=found.repo_id,
        )


def _fetch(link: Connection, found: ResolvedRepo, wanted: Mapping[str, RemoteFile], local_dir: Path | None) -> Path:
    """Fetch every file, ``sftknow.json`` last, comparing each with its hash as it arrives."""
    if local_dir is not None:
        # While files change below it, the folder must not look whole.
        (local_dir / MANIFEST).unlink(missing_ok=True)
    folder: Path | None = None
    with progress(sum(file.size for file in wanted.values()), f"Pulling {found.repo_id}", unit="B") as bar:
        bar.unit_scale = True
        for path, file in sorted(wanted.items(), key=lambda item: (item[0] == MANIFEST, item[0])):
            local = _fetch_file(link, found, file, local_dir)
            folder = local.parents[len(Path(path).parts) - 1]
            bar.update(file.size)
    assert folder is not None, "a listing without files is refused before"
    return folder


def _fetch_file(link: Connection, found: ResolvedRepo, file: RemoteFile, local_dir: Path | None) -> Path:
    for again in (False, True):
        local = Path(
            link.call(
                found.repo_id,
                link.api.hf_hub_download,
                found.repo_id,
                file.path,
                repo_type=found.repo_type,
                revision=found.commit,
                local_dir=local_dir,
                force_download=again,
            )
        )
        if file.same_as(local):
            return local
    local.unlink(missing_ok=True)
    raise HubError(
        f"{file.path} of {found.repo_id} arrives damaged (its hash is not the Hub's), twice; try again later",
        repo_id=found.repo_id,
    )


def _check_manifest(folder: Path, found: ResolvedRepo) -> None:
    """Compare the files with the hashes that the publisher wrote down, which a change made on the Hub breaks."""
    if not (folder / MANIFEST).is_file():
        return
    if found.repo_type == "dataset" and read_json(folder / MANIFEST).get("kind") != RESULTS:
        read_manifest(folder, KIND)
    for path, known in (read_json(folder / MANIFEST).get("sha256") or {}).items():
        if not (folder / path).is_file():
            raise HubError(f"{found.repo_id} lacks {path}, which its sftknow.json lists", repo_id=found.repo_id)
        if sha256_of(folder / path) != known:
            raise HubError(
                f"{path} of {found.repo_id} was changed after it was published (its sftknow.json disagrees)",
                repo_id=found.repo_id,
            )
