"""Who has results for a graded data set: asked of the Hub, model by model, and checked before it counts.

Results are looked for in two places: a model's own ``.eval_results`` files, and the results that runs of sftknow
publish. Nothing that is found is believed before it was compared: the data set's fingerprint, the weights' hashes, the
numbers with each other, and published answers with the data set's own. No text of it goes any further but the names of
repositories and branches that the Hub allows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from sftknow.artifacts.manifests import MANIFEST
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.errors import HubError, MasteryDataError, RunError
from sftknow.leaderboard.answers import LARGEST_TABLE, Questions, Right, scores_from
from sftknow.leaderboard.claims import LARGEST_FILE, NotCounted, Place, Told, read_claims, scores_of
from sftknow.leaderboard.ranking import Entrant
from sftknow.leaderboard.standings import LeftOut, SplitScore
from sftknow.models.hub_client import Connection, Subject
from sftknow.models.hub_files import Repo, open_repo, sha256_of
from sftknow.models.pull import RESULTS, resolve
from sftknow.progress import progress
from sftknow.records import SPLITS, Split

RESULTS_TAG = "evaluation-results"
"""Tag of published results on the Hub."""

_BRANCH = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
_MODEL = re.compile(r"[\w-][\w.@%+-]{0,199}", re.ASCII)
_LARGEST_MANIFEST = 16 * 2**20
"""Bytes; a longer ``sftknow.json`` is none."""
_MOST_MODELS = 1000
"""Models that one run's results may tell of."""
_AWAY = ("missing", "gated", "revision", "entry")
"""Reasons of the Hub that concern one repository and not the others."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the Hub has for a data set."""

    questions: Questions
    entrants: tuple[Entrant, ...]
    left_out: tuple[LeftOut, ...]
    private: int
    """Models that are not public."""


@dataclass(frozen=True)
class _Answered:
    """A run's published results for one of its models."""

    repo: Repo
    name: str
    """The model's name in the run."""

    @property
    def owner(self) -> str:
        return self.repo.repo_id.partition("/")[0]


class _Private(Exception):  # noqa: N818 - told apart, and counted
    """A model that not everyone may see."""


@dataclass
class _Search:
    """What is known while the Hub is being asked."""

    questions: Questions
    link: Connection
    revisions: dict[str, str | None] = field(default_factory=dict)
    """Fingerprint of the data set at each commit that somebody named."""
    models: dict[str, dict[str, list[_Answered]]] = field(default_factory=dict)
    """For each model and branch the runs' results that tell of it."""

    @property
    def dataset(self) -> str:
        return self.questions.repo.repo_id

    @property
    def fingerprint(self) -> str:
        return self.questions.data.fingerprint


def open_questions(dataset: str, link: Connection) -> Questions:
    """A graded data set on the Hub.

    Raises:
        HubError: it is not there, or the Hub could not be reached.
        MasteryDataError: it is no graded data set.
    """
    if constants.HF_HUB_OFFLINE:
        raise HubError("a leaderboard is made of what lies on the Hub: unset HF_HUB_OFFLINE", repo_id=dataset)
    repo = resolve(dataset, repo_type="dataset", link=link)
    manifest = repo.file(MANIFEST)
    if manifest is None:
        raise MasteryDataError(f"{repo.repo_id} has no sftknow.json: it is no graded data set")
    try:
        return Questions(repo, MasteryData(manifest.parent))
    except RunError as error:
        raise MasteryDataError(str(error)) from None


def collect(dataset: str, link: Connection) -> Found:
    """Every public model that has results for a data set.

    Args:
        dataset: ``org/name``, or ``org/name@revision`` for an earlier version of it.
        link: to the Hub.

    Raises:
        HubError: there is no such data set, or the Hub could not be reached.
        MasteryDataError: it is no graded data set.
    """
    search = _Search(open_questions(dataset, link), link)
    for repo_id in _models(search):
        search.models.setdefault(repo_id, {})
    for repo in _results(search):
        for repo_id, branch, name in _named_models(repo):
            search.models.setdefault(repo_id, {}).setdefault(branch, []).append(_Answered(repo, name))
    entrants: list[Entrant] = []
    left_out: list[LeftOut] = []
    private = 0
    with progress(len(search.models), "reading results", unit="models") as bar:
        for repo_id in sorted(search.models):
            bar.update()
            for branch in _branches(search, repo_id):
                try:
                    entrant = _examine(search, repo_id, branch)
                except _Private:
                    private += 1
                    break
                except NotCounted as reason:
                    left_out.append(LeftOut(repo_id=repo_id, branch=branch, reason=str(reason)))
                else:
                    entrants += [entrant] if entrant else []
    return Found(questions=search.questions, entrants=tuple(entrants), left_out=tuple(left_out), private=private)


# ---- who could have results ---------------------------------------------------------------------------------------


def _models(search: _Search) -> list[str]:
    """Models whose card names the data set, and those of the Hub's own leaderboard where it has one."""
    api, about = search.link.api, Subject(repo_id=search.dataset, repo_type="dataset", reading=True)

    def leaderboard() -> list[str]:
        try:
            entries = api.get_dataset_leaderboard(search.dataset, base_model_only=False)
        except HfHubHTTPError as error:
            if error.response.status_code in (400, 404):  # the Hub has not made it a benchmark
                return []
            raise
        return [entry.model_id for entry in entries if entry.pull_request is None]

    named = search.link.call(about, lambda: [m.id for m in api.list_models(filter=f"dataset:{search.dataset}")])
    return [name for name in dict.fromkeys([*named, *search.link.call(about, leaderboard)]) if is_repo(name)]


def _results(search: _Search) -> Iterator[Repo]:
    """Published results of runs on this very data set."""
    api, about = search.link.api, Subject(repo_id=search.dataset, repo_type="dataset", reading=True)
    ids = search.link.call(about, lambda: [d.id for d in api.list_datasets(filter=["sftknow", RESULTS_TAG])])
    for repo_id in sorted(name for name in ids if is_repo(name)):
        try:
            repo = open_repo(repo_id, None, "dataset", link=search.link)
            manifest = _manifest(repo)
        except HubError as error:
            if error.reason not in _AWAY:
                raise
            continue
        named = _mapping(manifest.get("mastery_dataset"))
        if manifest.get("kind") == RESULTS and not repo.info.private and named.get("repo") == search.dataset:
            yield repo


def _named_models(repo: Repo) -> Iterator[tuple[str, str, str]]:
    """(repository, branch, name in the run) of the models that a run's results tell of."""
    models = _mapping(_manifest(repo).get("models"))
    for name, place in itertools.islice(models.items(), _MOST_MODELS):
        where, branch = _mapping(place).get("repo"), _mapping(place).get("branch", "main")
        if _MODEL.fullmatch(str(name)) and is_repo(where) and isinstance(branch, str) and _BRANCH.fullmatch(branch):
            yield str(where), branch, str(name)


def _branches(search: _Search, repo_id: str) -> list[str]:
    """The default branch first, then restored versions and what runs' results name."""
    about = Subject(repo_id=repo_id, repo_type="model", reading=True)
    try:
        refs = search.link.call(about, search.link.api.list_repo_refs, repo_id, repo_type="model")
    except HubError as error:
        if error.reason not in _AWAY:
            raise
        return ["main"]
    restored = {b.name for b in refs.branches if b.name.startswith("restore-") and _BRANCH.fullmatch(b.name)}
    return ["main", *sorted({*restored, *search.models[repo_id]} - {"main"})]


def _manifest(repo: Repo) -> Mapping[str, Any]:
    """What ``sftknow.json`` says; empty where there is none that could be one."""
    listed = repo.files.get(MANIFEST)
    try:
        return repo.json(MANIFEST) if listed and listed.size <= _LARGEST_MANIFEST else {}
    except RecursionError:
        return {}


def is_repo(name: Any) -> bool:
    """True for what could be ``org/name`` on the Hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return isinstance(name, str) and name.count("/") == 1


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


# ---- one model ----------------------------------------------------------------------------------------------------


def _examine(search: _Search, repo_id: str, branch: str) -> Entrant | None:
    """One model's results, checked; None where it tells none.

    Raises:
        NotCounted: it tells some that do not count.
        HubError: the Hub refused or could not be reached.
    """
    try:
        repo = open_repo(repo_id, branch, "model", link=search.link)
        if repo.info.private:
            raise _Private
        manifest = _manifest(repo)
        known = _mapping(manifest.get("sha256"))
        told = _own_claims(search, repo, known)
    except HubError as error:
        if error.reason not in _AWAY:
            raise
        gated = error.reason == "gated"
        raise NotCounted("it is gated: what it holds is not for everyone" if gated else "it is not there") from None
    owner = repo_id.partition("/")[0]
    runs = search.models[repo_id].get(branch, [])
    if told:  # what its owner tells is not overruled by others
        runs = [run for run in runs if run.owner == owner]
    if not told and not runs:
        return None
    weights = _same_weights(repo, known)
    scores: dict[Split, SplitScore] = {}
    if told:
        _check_version(search, manifest, told)
        scores = scores_of(told, search.questions.counts)
    answered = _first_answers(search, sorted(runs, key=lambda run: (run.owner != owner, run.repo.repo_id, run.name)))
    if isinstance(answered, NotCounted):
        if not told:
            raise answered
        answered = None
    told_by = answered[0].repo.repo_id if answered else repo_id
    right = answered[1] if answered else None
    found = scores_from(right) if right else {}
    for split in (split for split in SPLITS if split in found and split in scores):
        claimed = told.get((split, None)) or Told(percent=100 * scores[split].value, digits=2, count=None)
        if not claimed.agrees(found[split].value):
            given = f"{100 * found[split].value:.2f} %"
            raise NotCounted(f"it tells {claimed.percent:.2f} % on {split}, and its published answers give {given}")
    return Entrant(
        repo_id=repo_id,
        branch=branch,
        commit=str(repo.commit),
        told_by=told_by,
        own=told_by.partition("/")[0] == owner,
        weights=weights,
        scores={**scores, **found},
        right=right,
    )


def _first_answers(search: _Search, runs: Sequence[_Answered]) -> tuple[_Answered, Right] | NotCounted | None:
    """The first published answers that can be used; why there are none; None where no run has any."""
    why = None
    for run in runs:
        try:
            return run, _answers(search, run)
        except NotCounted as reason:
            why = why or reason
    return why


def _own_claims(search: _Search, repo: Repo, known: Mapping[str, Any]) -> dict[Place, Told]:
    contents = []
    for path, file in sorted(repo.files.items()):
        if not re.fullmatch(rf"{re.escape(constants.EVAL_RESULTS_FOLDER)}/[\w.-]+\.ya?ml", path):
            continue
        if file.size > LARGEST_FILE:
            raise NotCounted("a results file of it is too long to be one")
        local = repo.file(path)
        content = local.read_bytes() if local else b""
        if path in known and known[path] != sha256_of(content):
            raise NotCounted("its results were changed after they were published")
        contents.append(content)
    return read_claims(contents, search.dataset)


def _same_weights(repo: Repo, known: Mapping[str, Any]) -> bool:
    """Whether the weights are those that the manifest lists; False where it lists none.

    Raises:
        NotCounted: it lists others.
    """
    weights = {path: file.sha256 for path, file in repo.files.items() if path.endswith(".safetensors")}
    listed = {path: sha256 for path, sha256 in known.items() if str(path).endswith(".safetensors")}
    if listed and listed != weights:
        raise NotCounted("its weights are others than those that were published with its results")
    return bool(listed)


def _check_version(search: _Search, manifest: Mapping[str, Any], told: Mapping[Place, Told]) -> None:
    """Raise NotCounted where the results are not known to be of this version of the data set."""
    fingerprint = _mapping(manifest.get("mastery_dataset")).get("fingerprint")
    revisions: Sequence[str | None] = sorted({one.revision for one in told.values() if one.revision})
    if not revisions and fingerprint is None:
        raise NotCounted("it does not say which version of the data set it was scored on")
    seen = {_fingerprint_at(search, revision) for revision in revisions if revision}
    if None in seen:
        raise NotCounted("it names a version of the data set that is not there")
    if (seen | ({fingerprint} if fingerprint else set())) != {search.fingerprint}:
        raise NotCounted("it was scored on another version of the data set")


def _fingerprint_at(search: _Search, commit: str) -> str | None:
    if commit not in search.revisions:
        try:
            there = open_repo(search.dataset, commit, "dataset", link=search.link)
            found = _manifest(there).get("fingerprint")
        except HubError as error:
            if error.reason not in _AWAY:
                raise
            found = None
        search.revisions[commit] = found if isinstance(found, str) else None
    return search.revisions[commit]


def _answers(search: _Search, one: _Answered) -> Right:
    """A model's published answers, as right or wrong.

    Raises:
        NotCounted: they are of another version of the data set, not there, or not whole.
    """
    named = _mapping(_manifest(one.repo).get("mastery_dataset"))
    if named.get("fingerprint") != search.fingerprint:
        raise NotCounted("its answers are to another version of the data set")
    path = f"evaluation/{one.name}/questions.parquet"
    listed = one.repo.files.get(path)
    table = one.repo.file(path) if listed and listed.size <= LARGEST_TABLE else None
    if table is None:
        raise NotCounted("the results of its run have no answers of it")
    right = search.questions.right(table)
    if not right:
        raise NotCounted("its published answers are to none of the splits that are ranked")
    return right
