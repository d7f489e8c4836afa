"""What a publication would put where: files, bytes, and those that are made for it (card, manifest, notice)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sftknow.artifacts.files import visible_files
from sftknow.artifacts.manifests import MANIFEST, load_manifest
from sftknow.artifacts.mastery_data import KIND, bucket_file
from sftknow.checkpoints.deltas import is_delta
from sftknow.checkpoints.stored_file import StoredFile, stored_files
from sftknow.errors import HubError, SftknowError
from sftknow.models.hub_client import Connection, Patience, RepoType, check_repo_id
from sftknow.models.hub_files import sha256_of
from sftknow.models.resolving import resolve_base
from sftknow.progress import progress
from sftknow.publishing.benchmark import EVAL_RESULTS, EVAL_YAML, eval_yaml
from sftknow.publishing.cards import (
    LEVELS_PICTURE,
    DatasetCardContext,
    Licence,
    ModelCardContext,
    render_dataset_card,
    render_eval_results,
    render_levels,
    render_model_card,
)
from sftknow.publishing.contexts import (
    build_dataset_context,
    build_model_context,
    licence_of_model,
    local_base,
    manifest_name,
)
from sftknow.publishing.licences import Papers, papers_of_folder, terms_of
from sftknow.publishing.merging import marked, noted
from sftknow.publishing.origins import base_on_the_hub, licence_of_source, pinned, pinned_dataset
from sftknow.publishing.runs import ModelEvaluation, whole_manifest
from sftknow.records import BUCKETS, SPLITS

CARD = "README.md"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_MADE_ANEW = (MANIFEST, "README.md", "NOTICE", "NOTICE.txt", "NOTICE.md")
"""Files that are made anew for the Hub."""
_WORTH_A_BAR = 512 * 2**20
_MANY = 12
"""Files of one folder beyond which a plan does not list them one by one."""


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """One file of a publication."""

    path: str
    """Within the repository."""
    size: int
    """Bytes."""
    sha256: str
    content: Path | bytes | StoredFile
    """A local file, the bytes that were made for it, or a file that is stored as a delta."""
    state: tuple[Path, int, int] | None = None
    """The local file, its size and when it was last changed, in nanoseconds, at the time of planning."""

    def check_unchanged(self) -> None:
        """Raise HubError where the local file is another one by now, whose hash would be a lie."""
        if not isinstance(self.content, bytes) and _state(self.content) != self.state:
            place = self.content if isinstance(self.content, Path) else self.content.path
            raise HubError(f"{place} was changed while it was being published; start again")


@dataclass(frozen=True, kw_only=True)
class PublicationPlan:
    """What would go where. `lines` tells it to a person."""

    artifact: Path
    repo_id: str
    repo_type: RepoType
    private: bool
    revision: str
    """The branch."""
    files: tuple[PlannedFile, ...]
    """``sftknow.json`` last."""
    message: str
    """Of the commit."""
    refresh: bool = False
    """True where all but the card and the manifest is on the Hub already, and only they are brought up to date."""

    @property
    def bytes(self) -> int:
        """Size of all files, of a refresh those of card and manifest."""
        return sum(file.size for file in self.files if not self.refresh or file.path in (CARD, MANIFEST))

    def file(self, path: str) -> PlannedFile:
        """The file of that path. Raises KeyError where there is none."""
        return {file.path: file for file in self.files}[path]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The plan in words, one line a file, or one a folder that has many."""
        kind = {"dataset": "data set", "space": "Space"}.get(self.repo_type, self.repo_type)
        where = self.repo_id if self.revision == "main" else f"{self.repo_id}, branch {self.revision}"
        seen = "private" if self.private else "public"
        head = f"{self.artifact} → {seen} {kind} {where}: {len(self.files)} files, {self.bytes:,} bytes"
        if self.refresh:
            return [f"{self.artifact} → {seen} {kind} {where}: its card is brought up to date"]
        folders: dict[str, list[PlannedFile]] = {}
        for file in self.files:
            folders.setdefault(file.path.split("/")[0], []).append(file)
        rows = []
        for folder, files in folders.items():
            if len(files) > _MANY:
                rows.append((sum(file.size for file in files), f"{folder}/ ({len(files)} files)"))
            else:
                rows += [(file.size, file.path) for file in files]
        return [head, *(f"  {size:>15,}  {path}" for size, path in rows)]


@dataclass
class Hashes:
    """Hashes of local files that were taken already; a run plans its models twice and reads their weights once."""

    known: dict[tuple[str, Path, int, int], str] = field(default_factory=dict)


def plan_publication(
    artifact: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str = "main",
    branches: tuple[str, ...] = (),
    results: str | None = None,
    report: str | None = None,
    licence: Licence | str | None = None,
    licence_file: str | Path | None = None,
    evaluation: ModelEvaluation | None = None,
    base_repo: str | None = None,
    dataset_repo: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    patience: Patience | None = None,
    hashes: Hashes | None = None,
) -> PublicationPlan:
    """Plan the publication of a model folder or of a graded data set. Nothing is sent.

    The Hub is asked for what is not on this machine: the licence of a base model or of facts that lie there, and the
    commit of a base or data set that was named without one.

    Args:
        artifact: a folder with its ``sftknow.json``.
        repo_id: ``org/name``.
        private: who may see it.
        revision: the branch, such as ``restore-5pct``; made where it does not exist.
        branches: other branches that hold restored versions of the model, for its card.
        results: repository with the answers and scores of the model's run, for its card.
        report: Space with the report of that run, for its card.
        licence: the Hub's licence identifier; None carries over the base model's, or that of the facts' source.
        licence_file: the text that came with the licence, where the base has none.
        evaluation: a model's scores; None looks for them in the run that the folder belongs to.
        base_repo: where the base (or grading) model is on the Hub, ``org/name[@revision]``; None for what the
            artifact says.
        dataset_repo: where a model's graded data set is on the Hub, so that lm-eval finds it there; None for what the
            model says.
        endpoint: of the Hub, as for `publish`.
        token: the same.
        patience: the same.
        hashes: taken before; new ones are added.

    Raises:
        HubError: the name is not allowed, the artifact is not whole, a licence is missing or forbids the name.
    """
    artifact = Path(artifact)
    if not (artifact / MANIFEST).is_file():
        raise HubError(_no_artifact(artifact), repo_id=repo_id)
    check_repo_id(repo_id)
    found = load_manifest(artifact)
    kind = found.get("kind")
    link = Connection.open(endpoint=endpoint, token=token, patience=patience)
    named = Licence(id=licence) if isinstance(licence, str) else licence
    base = pinned(base_repo, "model", link) if base_repo else None
    if kind == KIND:
        named = named or licence_of_source(found, link)
        about, head, paths = _dataset(artifact, repo_id, named, base)
        card = render_dataset_card(about)
        contents: dict[str, Path | StoredFile] = {path: artifact / path for path in paths}
        made = {EVAL_YAML: eval_yaml(repo_id, about.graded_by.name, about.counts).encode()}
    elif kind == "model":
        manifest = whole_manifest(artifact)
        context, papers = _model(
            artifact,
            manifest,
            link,
            repo_id=repo_id,
            branch=revision,
            branches=branches,
            results=results,
            report=report,
            licence=named,
            licence_file=licence_file,
            evaluation=evaluation,
            base_repo=base,
            dataset_repo=dataset_repo,
        )
        scored, drawing = render_eval_results(context), render_levels(context)
        made = {
            **papers.others,
            **({"NOTICE": context.notice.encode()} if context.notice else {}),
            **({EVAL_RESULTS: scored.encode()} if scored else {}),
            **({LEVELS_PICTURE: drawing.encode()} if drawing else {}),
        }
        card, head = render_model_card(context), _model_manifest(manifest, context)
        files = _model_files(artifact, manifest, repo_id, base)
        contents = {path: content for path, content in files.items() if path not in made}
    else:
        raise HubError(f"{artifact} holds a {kind}: only models, graded data sets and runs are published")
    return assemble(
        artifact,
        repo_id,
        repo_type="dataset" if kind == KIND else "model",
        private=private,
        revision=revision,
        files=hashed(contents, hashes or Hashes()),
        made=made,
        card=card,
        head=head,
        what="graded data set" if kind == KIND else "model",
    )


def _no_artifact(folder: Path) -> str:
    """What to say of a folder without ``sftknow.json``."""
    if not folder.exists():
        return f"{folder} is not there; give the folder of a run, a model or a graded data set"
    inside = sorted(place.parent for place in folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []
    if inside:
        names = ", ".join(place.name for place in inside[:4]) + (" …" if len(inside) > 4 else "")
        return f"{folder} holds models or data sets ({names}); give one of them, such as {inside[0]}"
    return f"{folder} has no sftknow.json: it is not finished, or was not made by sftknow"


def assemble(
    artifact: Path,
    repo_id: str,
    *,
    repo_type: RepoType,
    private: bool,
    revision: str,
    files: list[PlannedFile],
    made: Mapping[str, bytes],
    card: str,
    head: dict[str, Any],
    what: str,
) -> PublicationPlan:
    """Put a plan together: local files, made files, card, and last the manifest with the hashes of all but the card."""
    files = [*files, *(made_file(name, content) for name, content in made.items())]
    # The card stays out of the hashes: people mend cards on the Hub by hand.
    head["sha256"] = {file.path: file.sha256 for file in files}
    card = marked(card)
    head["card"] = noted(card)
    text = json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return PublicationPlan(
        artifact=artifact,
        repo_id=repo_id,
        repo_type=repo_type,
        private=private,
        revision=revision,
        files=(*files, made_file(CARD, card.encode()), made_file(MANIFEST, text.encode())),
        message=f"Publish {what} with sftknow",
    )


def _dataset(
    folder: Path, repo_id: str, licence: Licence | None, graded_by_repo: str | None
) -> tuple[DatasetCardContext, dict[str, Any], list[str]]:
    """The card's context, the manifest and the files."""
    context = build_dataset_context(folder, repo_id=repo_id, licence=licence, graded_by_repo=graded_by_repo)
    manifest = load_manifest(folder)
    paths = [bucket_file(split, bucket) for split in SPLITS for bucket in BUCKETS]
    for path, known in (manifest.get("sha256") or {}).items():
        if path in paths and sha256_of(folder / path) != known:
            raise HubError(f"{folder / path} is not what was graded (its hash differs); grade again", repo_id=repo_id)
    grader = "@".join(filter(None, (manifest_name(context.graded_by), context.graded_by.revision)))
    head = without_local_paths({**manifest, "license": _as_json(context.licence)})
    return context, {**head, "graded_by": grader}, paths


def _model(
    artifact: Path,
    manifest: Mapping[str, Any],
    link: Connection,
    *,
    licence: Licence | None,
    licence_file: str | Path | None,
    base_repo: str | None,
    dataset_repo: str | None,
    **named: Any,
) -> tuple[ModelCardContext, Papers]:
    """The card's context and the licence files, with what the Hub had to be asked for."""
    known, local = licence_of_model(artifact, manifest), None if base_repo else local_base(artifact, manifest)
    if local is not None:
        papers = papers_of_folder(local)
    else:
        on_hub, papers = base_on_the_hub(artifact, manifest, base_repo, link)
        known = known or on_hub
    licence = licence or known
    if licence_file is not None:
        try:
            text = Path(licence_file).read_bytes()
        except OSError as error:
            raise HubError(f"--licence-file {licence_file} cannot be read ({error.strerror})") from None
        papers = Papers(files={**papers.files, "LICENSE": text})
    elif licence is not None and terms_of(licence) is None and licence != known:
        # Another licence than the base's was asked for: the base's own text would contradict it.
        papers = Papers(files={name: text for name, text in papers.files.items() if name not in papers.agreements})
    named["dataset_repo"] = pinned_dataset(dataset_repo, manifest, link) if dataset_repo else None
    return build_model_context(artifact, licence=licence, papers=papers, base_repo=base_repo, **named), papers


def _model_manifest(manifest: dict[str, Any], context: ModelCardContext) -> dict[str, Any]:
    head: dict[str, Any] = without_local_paths({**manifest, "license": _as_json(context.licence)})
    kept = head["base"] if isinstance(head["base"], dict) else {}
    head["base"] = {**kept, "path": manifest_name(context.base), "revision": context.base.revision}
    data = context.data.source if context.data else None
    if data and data.hub_id and context.data:
        named = {"repo": data.hub_id, "revision": data.revision, "fingerprint": context.data.fingerprint}
        head["mastery_dataset"] = {key: value for key, value in named.items() if value is not None}
    else:
        # A folder of this machine means nothing there; without the key lm-eval says what to pass.
        head.pop("mastery_dataset", None)
    return head


def _model_files(
    folder: Path, manifest: Mapping[str, Any], repo_id: str, base_repo: str | None
) -> dict[str, Path | StoredFile]:
    """The files of a model that go to the Hub; a delta's are those of the checkpoint that it stands for."""
    found: Mapping[str, Path | StoredFile]
    if is_delta(folder):
        found = stored_files(_base_of_delta(folder, manifest, base_repo), folder)
    else:
        found = {file.relative_to(folder).as_posix(): file for file in visible_files(folder)}
    files = {path: content for path, content in sorted(found.items()) if _goes_along(PurePosixPath(path))}
    if not any(path.endswith(".safetensors") for path in files):
        raise HubError(f"{folder} has no safetensors weights: it is no finished model", repo_id=repo_id)
    if "config.json" not in files:
        raise HubError(f"{folder} has no config.json: it is no finished model", repo_id=repo_id)
    return files


def _goes_along(path: PurePosixPath) -> bool:
    aside = any(part.startswith((".", "checkpoint-")) for part in path.parts)
    return not aside and path.name not in _MADE_ANEW and path.suffix not in _PICKLES


def _base_of_delta(folder: Path, manifest: Mapping[str, Any], base_repo: str | None) -> Path:
    """The base's folder on this machine; one that is on the Hub is pulled."""
    local = local_base(folder, manifest)
    beside = folder.parent / "base"
    if local is None and (beside / MANIFEST).is_file() and any(beside.glob("*.safetensors")):
        local = beside
    named = str(local) if local else base_repo or (manifest.get("base") or {}).get("path")
    try:
        return Path(resolve_base(str(named), None, None).ref.path)
    except SftknowError as error:
        raise HubError(
            f"{folder} is stored as what differs from its base, which is needed to publish it: {error}; "
            "give the base with --base ORG/NAME, or write the whole model with `sftknow materialize`"
        ) from None


def hashed(contents: Mapping[str, Path | StoredFile], hashes: Hashes) -> list[PlannedFile]:
    """Files with size and hash; a bar is shown where there is much to read. What is stored as a delta is compared."""
    states = {path: (path, *_state(content)) for path, content in contents.items()}
    sizes = {p: content.size if isinstance(content, StoredFile) else states[p][2] for p, content in contents.items()}
    new = {path for path, state in states.items() if state not in hashes.known}
    total, files = sum(sizes[path] for path in new), []
    with progress(total, "Hashing", unit="B") if total > _WORTH_A_BAR else nullcontext() as bar:
        for path, content in contents.items():
            state = states[path]
            if path in new:
                hashes.known[state] = content.verify() if isinstance(content, StoredFile) else sha256_of(content)
                if bar is not None:
                    bar.unit_scale = True
                    bar.update(sizes[path])
            sha256 = hashes.known[state]
            files.append(PlannedFile(path=path, size=sizes[path], sha256=sha256, content=content, state=state[1:]))
    return files


def _state(content: Path | StoredFile) -> tuple[Path, int, int]:
    place = content if isinstance(content, Path) else content.path
    status = place.stat()
    return place, status.st_size, status.st_mtime_ns


def made_file(path: str, content: bytes) -> PlannedFile:
    """A file of these bytes."""
    return PlannedFile(path=path, size=len(content), sha256=sha256_of(content), content=content)


def _as_json(licence: Licence) -> dict[str, str]:
    return {key: value for key, value in asdict(licence).items() if value is not None}


def without_local_paths(value: Any) -> Any:
    """The same JSON with absolute paths cut to their last part: nobody else has them, and they tell who and where."""
    if isinstance(value, Mapping):
        return {key: without_local_paths(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_local_paths(entry) for entry in value]
    if isinstance(value, str) and value.startswith(("/", "~/")):
        return Path(value).name
    return value
