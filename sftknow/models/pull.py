"""Pulling a model or a graded data set: whole, as it lies on the Hub, and as it was published."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from pathlib import Path

from sftknow.artifacts.manifests import MANIFEST, load_manifest, read_manifest
from sftknow.artifacts.mastery_data import KIND
from sftknow.checkpoints.completeness import check_files
from sftknow.errors import HubError, SftknowError
from sftknow.models.hub_client import Connection, Patience, RepoType, check_repo_id
from sftknow.models.hub_files import Repo, open_repo, sha256_of
from sftknow.records import ModelRef
from sftknow.untrusted import printable, refuse_outside

RESULTS = "results"
"""Kind of a published run's results, in the manifest."""

NOT_FETCHED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".tflite", ".ot")
"""Weights in formats that sftknow never loads: pickles, and copies for other programs."""


_ESSENTIAL = re.compile(
    r"(.*/)?([^/]+\.(safetensors|safetensors\.index\.json|parquet|model|spm|tiktoken|bpe|py)|config\.json|merges\.txt"
    r"|(tokenizer|vocab|chat_template|added_tokens|special_tokens_map)[^/]*)"
)
"""Files that have to be as they were published; others, such as cards and scores, people add and mend on the Hub."""

_log = logging.getLogger(__name__)


def pull(
    repo_id_with_revision: str,
    *,
    repo_type: RepoType | None = None,
    local_dir: str | Path | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    patience: Patience | None = None,
) -> Path:
    """Fetch a model or a graded data set and make sure that it is whole and as it lies on the Hub.

    With ``HF_HUB_OFFLINE`` what was pulled before is taken from the cache, as it was checked then.

    Args:
        repo_id_with_revision: ``org/name`` or ``org/name@branch-tag-or-commit``.
        repo_type: None finds out, and asks where a model and a data set have the same name.
        local_dir: where to put it: a new or empty folder, or that of an earlier pull. None uses the Hub's cache, in a
            folder named after the commit.
        endpoint: of the Hub, as for `publish`.
        token: the same.
        patience: the same.

    Returns:
        The folder with the files.

    Raises:
        HubError: the Hub refused, could not be reached, or what arrived is not what it lists; a graded data set
            without ``sftknow.json``, which is unfinished or none; a model without safetensors weights.
        ModelError: offline the cache has some of the model's weights only.
    """
    local_dir = None if local_dir is None else Path(local_dir)
    link = Connection.open(endpoint=endpoint, token=token, patience=patience)
    found = resolve(repo_id_with_revision, repo_type=repo_type, link=link)
    wanted = [path for path in found.sizes if not path.endswith(NOT_FETCHED)]
    _check_listing(found, wanted)
    if local_dir is not None:
        _check_folder(local_dir, wanted, found)
    folder = found.download(wanted, local_dir)
    if found.offline and found.repo_type == "model":
        check_files(ModelRef(path=str(folder)))
    try:
        _check_manifest(folder, found)
    except SftknowError:
        if local_dir is not None:
            (local_dir / MANIFEST).unlink(missing_ok=True)  # what was refused must not look whole
        raise
    return folder


_SNAPSHOT = re.compile(
    r"(?P<kind>models|datasets)--(?P<owner>[^/]+?)--(?P<name>[^/]+?)/snapshots/(?P<commit>[0-9a-f]{40})/?$"
)


def origin(folder: str | Path) -> Repo | None:
    """The repository and commit that a folder of the Hub's cache holds; None for any other folder."""
    found = _SNAPSHOT.search(str(folder))
    if found is None:
        return None
    kind: RepoType = "model" if found["kind"] == "models" else "dataset"
    return Repo(repo_id=f"{found['owner']}/{found['name']}", repo_type=kind, commit=found["commit"])


def resolve(repo_id_with_revision: str, *, repo_type: RepoType | None, link: Connection) -> Repo:
    """The repository at the commit that a revision stands for now. Raises HubError where the Hub does not say."""
    ref = ModelRef.parse(repo_id_with_revision)
    check_repo_id(ref.path)
    found: list[Repo] = []
    absent: list[HubError] = []
    kinds: tuple[RepoType, ...] = (repo_type,) if repo_type else ("model", "dataset")
    for kind in kinds:
        try:
            repo = open_repo(ref.path, ref.revision, kind, link=link)
            if repo.offline:
                repo.cached()
            found.append(repo)
        except HubError as error:
            if repo_type is not None or error.reason not in ("missing", "offline"):
                raise
            absent.append(error)
    if len(found) > 1:
        raise HubError(f"{ref.path} is both a model and a data set: say which with --type", repo_id=ref.path)
    if not found:
        raise absent[0]
    return found[0]


def _check_listing(found: Repo, wanted: Collection[str]) -> None:
    if found.repo_type == "dataset" and MANIFEST not in wanted:
        raise HubError(
            f"{found.repo_id} has no sftknow.json: it is no graded data set, or its upload did not finish",
            repo_id=found.repo_id,
        )
    if found.repo_type == "model" and not any(path.endswith(".safetensors") for path in wanted):
        raise no_safetensors(found.repo_id)


def no_safetensors(repo_id: str) -> HubError:
    """What to say of a model that has weights of other formats only."""
    return HubError(
        f"{repo_id} has no safetensors weights, and other formats are never loaded: ask its owner to convert",
        repo_id=repo_id,
    )


def _check_folder(folder: Path, wanted: Collection[str], found: Repo) -> None:
    if folder.exists() and not folder.is_dir():
        raise HubError(f"{folder} is a file; give a folder for {found.repo_id}", repo_id=found.repo_id)
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} if folder.is_dir() else set()
    other = sorted(path for path in there if path not in wanted and not path.startswith(".cache/"))
    if other:
        names = ", ".join(map(printable, other[:3]))
        raise HubError(
            f"{folder} holds files that are not in {found.repo_id} ({names}): give an empty folder",
            repo_id=found.repo_id,
        )


def _check_manifest(folder: Path, found: Repo) -> None:
    """Compare the files with the hashes that the publisher wrote down, which a change made on the Hub breaks.

    Weights, tokenizer, configuration and facts have to be as they were; of other files it is told.
    """
    if not (folder / MANIFEST).is_file():
        return
    manifest = load_manifest(folder)
    if found.repo_type == "dataset" and manifest.get("kind") != RESULTS:
        read_manifest(folder, KIND)
    known = manifest.get("sha256") or {}
    refuse_outside(known, f"{MANIFEST} of {found.repo_id}", error=HubError, way_out="tell its owner")
    changed = []
    for path, sha256 in known.items():
        there = (folder / path).is_file()
        if there and sha256_of(folder / path) == sha256:
            continue
        if not _ESSENTIAL.fullmatch(path):
            changed.append(path)
        elif there:
            raise HubError(
                f"{printable(path)} of {found.repo_id} was changed after it was published (its sftknow.json disagrees)",
                repo_id=found.repo_id,
            )
        elif not path.endswith(NOT_FETCHED):
            text = f"{found.repo_id} lacks {printable(path)}, which its sftknow.json lists"
            raise HubError(text, repo_id=found.repo_id)
    if changed:
        files = ", ".join(map(printable, changed[:5])) + (" …" if len(changed) > 5 else "")
        _log.warning("changed on the Hub after %s was published, and of no weight here: %s", found.repo_id, files)
