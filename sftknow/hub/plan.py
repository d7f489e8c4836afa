"""What a publication would put where: files, bytes, and the two that are made for it, card and manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sftknow.errors import HubError
from sftknow.hub.cards import Licence, ModelCardContext, Source, render_dataset_card, render_model_card
from sftknow.hub.client import Connection, check_repo_id
from sftknow.hub.contexts import (
    build_dataset_context,
    build_model_context,
    licence_of_model,
    named_source,
    source_of,
)
from sftknow.hub.licences import licence_from
from sftknow.hub.remote import sha256_of
from sftknow.hub.runs import ModelEvaluation, whole_manifest
from sftknow.progress import progress
from sftknow.records import BUCKETS, SPLITS
from sftknow.storage.artifacts import read_json
from sftknow.storage.manifests import MANIFEST
from sftknow.storage.mastery_data import KIND, bucket_file

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_MADE_ANEW = (MANIFEST, "README.md", "NOTICE")
"""Files that are made anew for the Hub."""
_WORTH_A_BAR = 512 * 2**20


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """One file of a publication."""

    path: str
    """Within the repository."""
    size: int
    """Bytes."""
    sha256: str
    content: Path | bytes
    """A local file, or the bytes that were made for it."""


@dataclass(frozen=True, kw_only=True)
class PublicationPlan:
    """What would go where. `lines` tells it to a person."""

    artifact: Path
    repo_id: str
    repo_type: str
    """``model`` or ``dataset``."""
    private: bool
    revision: str
    """The branch."""
    files: tuple[PlannedFile, ...]
    """``sftknow.json`` last."""
    message: str
    """Of the commit."""

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.size for file in self.files)

    def file(self, path: str) -> PlannedFile:
        """The file of that path. Raises KeyError where there is none."""
        return {file.path: file for file in self.files}[path]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The plan in words, one line a file."""
        kind = "data set" if self.repo_type == "dataset" else "model"
        where = self.repo_id if self.revision == "main" else f"{self.repo_id}, branch {self.revision}"
        seen = "private" if self.private else "public"
        head = f"{self.artifact} → {seen} {kind} {where}: {len(self.files)} files, {self.bytes:,} bytes"
        return [head, *(f"  {file.size:>15,}  {file.path}" for file in self.files)]


def plan_publication(
    artifact: Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str = "main",
    licence: Licence | str | None = None,
    evaluation: ModelEvaluation | None = None,
    base_repo: str | None = None,
    dataset_repo: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> PublicationPlan:
    """Plan the publication of a model folder or of a graded data set. Nothing is sent.

    The Hub is asked one thing at most: the licence of a base model that is not on this machine.

    Args:
        artifact: a folder with its ``sftknow.json``.
        repo_id: ``org/name``.
        private: who may see it.
        revision: the branch, such as ``restore-5pct``; made where it does not exist.
        licence: the Hub's licence identifier; None carries over the base model's, or that of the facts' source.
        evaluation: a model's scores; None looks for them in the run that the folder belongs to.
        base_repo: where the base (or grading) model is on the Hub, ``org/name[@revision]``; None for what the
            artifact says.
        dataset_repo: where a model's graded data set is on the Hub, so that lm-eval finds it there.
        endpoint, token: of the Hub, as for `publish`.

    Raises:
        HubError: the name is not allowed, the artifact is not whole, a licence is missing or forbids the name.
    """
    check_repo_id(repo_id)
    if not (artifact / MANIFEST).is_file():
        raise HubError(
            f"{artifact} has no sftknow.json: it is not finished, or was not made by sftknow", repo_id=repo_id
        )
    manifest = read_json(artifact / MANIFEST)
    if manifest.get("kind") == "model":
        manifest = whole_manifest(artifact)
    named = Licence(id=licence) if isinstance(licence, str) else licence
    if manifest.get("kind") == KIND:
        card, head, paths = _dataset(artifact, manifest, repo_id, named, base_repo)
        extra: dict[str, bytes] = {}
    elif manifest.get("kind") == "model":
        if named is None and licence_of_model(artifact, manifest) is None:
            named = _licence_on_the_hub(artifact, manifest, base_repo, Connection.open(endpoint=endpoint, token=token))
        context = build_model_context(
            artifact,
            repo_id=repo_id,
            evaluation=evaluation,
            licence=named,
            base_repo=base_repo,
            dataset_repo=dataset_repo,
        )
        card, head, paths = (
            render_model_card(context),
            _model_manifest(manifest, context),
            _model_files(artifact, repo_id),
        )
        extra = {"NOTICE": context.notice.encode()} if context.notice else {}
    else:
        raise HubError(f"{artifact} holds a {manifest.get('kind')}: only models and graded data sets are published")
    files = [*_hashed(artifact, paths), *(_made(name, content) for name, content in extra.items())]
    # The card stays out of the hashes: people mend cards on the Hub by hand.
    head["sha256"] = {file.path: file.sha256 for file in files}
    text = json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return PublicationPlan(
        artifact=artifact,
        repo_id=repo_id,
        repo_type="dataset" if manifest["kind"] == KIND else "model",
        private=private,
        revision=revision,
        files=(*files, _made("README.md", card.encode()), _made(MANIFEST, text.encode())),
        message=f"Publish {'graded data set' if manifest['kind'] == KIND else 'model'} with sftknow",
    )


def _dataset(
    folder: Path, manifest: dict[str, Any], repo_id: str, licence: Licence | None, graded_by_repo: str | None
) -> tuple[str, dict[str, Any], list[str]]:
    context = build_dataset_context(folder, repo_id=repo_id, licence=licence, graded_by_repo=graded_by_repo)
    paths = [bucket_file(split, bucket) for split in SPLITS for bucket in BUCKETS]
    for path, known in (manifest.get("sha256") or {}).items():
        if sha256_of(folder / path) != known:
            raise HubError(f"{folder / path} is not what was graded (its hash differs); grade again", repo_id=repo_id)
    graded_by = context.graded_by
    head = _without_local_paths({**manifest, "license": _as_json(context.licence)})
    head["graded_by"] = f"{graded_by.name}@{graded_by.revision}" if graded_by.revision else graded_by.name
    return render_dataset_card(context), head, paths


def _model_manifest(manifest: dict[str, Any], context: ModelCardContext) -> dict[str, Any]:
    head: dict[str, Any] = _without_local_paths({**manifest, "license": _as_json(context.licence)})
    kept = head["base"] if isinstance(head["base"], dict) else {}
    head["base"] = {**kept, "path": context.base.hub_id or context.base.name, "revision": context.base.revision}
    data = context.data.source if context.data else None
    if data and data.hub_id and context.data:
        named = {"repo": data.hub_id, "revision": data.revision, "fingerprint": context.data.fingerprint}
        head["mastery_dataset"] = {key: value for key, value in named.items() if value is not None}
    else:
        # A folder of this machine means nothing there; without the key lm-eval says what to pass.
        head.pop("mastery_dataset", None)
    return head


def _model_files(folder: Path, repo_id: str) -> list[str]:
    paths = []
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        hidden = any(part.startswith(".") or part.startswith("checkpoint-") for part in path.parts)
        if file.is_file() and not hidden and path.name not in _MADE_ANEW and file.suffix not in _PICKLES:
            paths.append(path.as_posix())
    if not any(path.endswith(".safetensors") for path in paths):
        raise HubError(f"{folder} has no safetensors weights: it is no finished model", repo_id=repo_id)
    if "config.json" not in paths:
        raise HubError(f"{folder} has no config.json: it is no finished model", repo_id=repo_id)
    return paths


def _hashed(folder: Path, paths: list[str]) -> list[PlannedFile]:
    sizes = {path: (folder / path).stat().st_size for path in paths}
    total, files = sum(sizes.values()), []
    with progress(total, "Hashing", unit="B") if total > _WORTH_A_BAR else nullcontext() as bar:
        for path, size in sizes.items():
            content = folder / path
            files.append(PlannedFile(path=path, size=size, sha256=sha256_of(content), content=content))
            if bar is not None:
                bar.update(size)
    return files


def _made(path: str, content: bytes) -> PlannedFile:
    return PlannedFile(path=path, size=len(content), sha256=sha256_of(content), content=content)


def _as_json(licence: Licence) -> dict[str, str]:
    return {key: value for key, value in asdict(licence).items() if value is not None}


def _without_local_paths(value: Any) -> Any:
    """The same JSON with absolute paths cut to their last part: nobody else has them, and they tell who and where."""
    if isinstance(value, Mapping):
        return {key: _without_local_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_local_paths(entry) for entry in value]
    if isinstance(value, str) and value.startswith(("/", "~/")):
        return Path(value).name
    return value


def _licence_on_the_hub(
    folder: Path, manifest: Mapping[str, Any], base_repo: str | None, link: Connection
) -> Licence | None:
    base: Source = named_source(base_repo) if base_repo else source_of(manifest.get("base"), folder)
    if base.hub_id is None:
        return None
    try:
        info = link.call(base.hub_id, link.api.model_info, base.hub_id, revision=base.revision)
    except HubError:
        # Whatever kept the Hub from answering, the way out is the same: the user names the licence.
        return None
    return licence_from(info.card_data.to_dict()) if info.card_data else None
