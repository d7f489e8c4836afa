"""Publish a whole run: its graded data set, its models with their restored versions as branches, its results."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from sftknow.artifacts.levels import level_of_folder, level_share
from sftknow.artifacts.manifests import MANIFEST
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.errors import HubError
from sftknow.models.hub_client import BRIEF, Connection, Patience, RepoType
from sftknow.models.hub_files import Repo
from sftknow.publishing.benchmark import EVAL_RESULTS
from sftknow.publishing.cards import LEVELS_PICTURE, Licence
from sftknow.publishing.licences import allowed_name
from sftknow.publishing.origins import licence_of_base, licence_of_source, pinned, pinned_dataset, standing
from sftknow.publishing.plan import CARD, Hashes, PublicationPlan, plan_publication
from sftknow.publishing.publish import check_cards, publish
from sftknow.publishing.receipts import PublishReceipt
from sftknow.publishing.results import plan_results
from sftknow.publishing.space import plan_report_space

PARTS = ("data", "tuned", "restored", "results")
"""What a run consists of, for ``--only``; a cell's name such as ``b2-n240-s0`` stands for that model and its levels."""

_BRANCH = "restore-"
"""What the branch of a restored version begins with; its level follows."""

_LATER = "f" * 40
"""Stands for a commit that does not exist before the data set is on the Hub; as long as one, so that sizes hold."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a person decides about the publication of a run."""

    to: str
    """User or organisation on the Hub."""
    name: str | None = None
    """What the repositories' names begin with; None for the run directory's name."""
    private: bool = True
    only: Sequence[str] = ()
    """Parts of `PARTS` and names of cells; empty for everything."""
    licence: Licence | None = None
    """Of the base model."""
    licence_file: Path | None = None
    data_licence: Licence | None = None
    """Of the facts' source."""
    base_repo: str | None = None
    """Where the base is on the Hub."""
    report_space: bool = False
    """Put the report up as a static Space, too."""
    wait: float | None = None
    """Seconds for which a Hub that does not answer is tried again; None for the default."""
    replace_card: bool = False
    """Give up what people changed on the Hub in the parts of the cards that sftknow writes."""


@dataclass(frozen=True, kw_only=True)
class RunPublication:
    """Plans in the order in which they are carried out: data set, models, restored versions, results."""

    plans: tuple[PublicationPlan, ...]

    def __str__(self) -> str:
        total, files = sum(p.bytes for p in self.plans), sum(len(p.files) for p in self.plans)
        last = f"in all {len(self.plans)} publications, {files:,} files, {total:,} bytes"
        return "\n".join([*(str(plan) for plan in self.plans), last])


def is_run(folder: Path) -> bool:
    """True for a run directory."""
    return (folder / "recipe.yaml").is_file() and not (folder / MANIFEST).is_file()


def plan_run(
    run: Path, options: RunOptions, *, endpoint: str | None = None, token: str | None = None
) -> RunPublication:
    """What would go where. The models' cards name a commit of the data set that does not exist yet: letters stand in.

    Raises:
        HubError: the run has no such part, a name is not allowed, or a licence is missing.
    """
    return _Planner(run, options, endpoint, token, guess=True).everything(_LATER)


def publish_run(
    run: Path,
    options: RunOptions,
    *,
    endpoint: str | None = None,
    token: str | None = None,
    say: Callable[[PublishReceipt], None] = lambda receipt: None,
) -> list[PublishReceipt]:
    """Publish a run part by part; a second call sends only what is missing.

    Args:
        run: the run directory.
        options: what goes where.
        endpoint, token: of the Hub, as for `sftknow.publishing.publish.publish`.
        say: gets each receipt as it comes.

    Raises:
        HubError: as `plan_run` and `publish`. What was published before it is complete.
    """
    planner, patience = _Planner(run, options, endpoint, token), Patience.of(options.wait)
    # Every name, licence and card is checked before anything is sent.
    plans = planner.everything(_LATER).plans
    check_cards(plans, planner.link, replace=options.replace_card)
    receipts: list[PublishReceipt] = []

    def send(plan: PublicationPlan) -> PublishReceipt:
        receipt = publish(plan, replace_card=options.replace_card, endpoint=endpoint, token=token, patience=patience)
        receipts.append(receipt)
        say(receipt)
        return receipt

    data = planner.data
    commit = send(data).revision if data else planner.commit_of_data()
    for plan in planner.everything(commit).plans:
        if data is None or plan.repo_id != data.repo_id:
            send(plan)
    return receipts


class _Planner:
    """The parts of one run and the names that they get."""

    def __init__(
        self, run: Path, options: RunOptions, endpoint: str | None, token: str | None, *, guess: bool = False
    ) -> None:
        self._run, self._options, self._guess = run, options, guess
        self._endpoint, self._token = endpoint, token
        self._patience = BRIEF if guess and options.wait is None else Patience.of(options.wait)
        self.link = Connection.open(endpoint=endpoint, token=token, patience=self._patience)
        self._hashes = Hashes()
        self._known: dict[str, Mapping[str, Repo]] = {}
        if not (run / "mastery" / "dataset" / MANIFEST).is_file():
            raise HubError(f"{run} has no graded data set yet: let `sftknow run` get that far first")
        self._dataset = run / "mastery" / "dataset"
        self._cells = sorted(p.parent.name for p in (run / "models").glob(f"*/{MANIFEST}") if p.parent.name != "base")
        levels = [(p.parents[1].name, p.parent.name) for p in (run / "restored").glob(f"*/*/{MANIFEST}")]
        self._levels = {cell: sorted((level for c, level in levels if c == cell), key=_share) for cell in self._cells}
        for part in options.only:
            if part not in (*PARTS, *self._cells):
                raise HubError(f"--only {part}: {run} has {', '.join((*PARTS, *self._cells))}")
        self._base = options.base_repo and pinned(options.base_repo, "model", self.link)
        self._name = re.sub(r"[^A-Za-z0-9._-]+", "-", options.name or run.resolve().name).strip("-.")
        self._models = self._name
        if self._cells:
            licence = options.licence or licence_of_base(run / "models" / self._cells[0], self._base, self.link)
            if licence:
                self._models = allowed_name(licence, f"{options.to}/{self._name}").partition("/")[2]

    def everything(self, commit: str) -> RunPublication:
        """All plans, the models' with this commit of the data set."""
        found = self.data
        data = f"{self._data_repo}@{commit}" if self._wanted("data") or commit != _LATER else self._data_commit()
        models = [plan for cell in self._cells for plan in self._of_cell(cell, data)]
        if not (found or models or self._wanted("results")):
            raise HubError(f"there is nothing of {self._run} to publish with --only {','.join(self._options.only)}")
        results = []
        if self._wanted("results"):
            results = [self._results(data)]
        elif models and "main" in self._standing(self._results_repo, "dataset"):
            results = self._refreshed(self._results(data))
        pages = [self._report(models)] if self._options.report_space else []
        return RunPublication(plans=(*([found] if found else []), *models, *results, *pages))

    @cached_property
    def data(self) -> PublicationPlan | None:
        """The graded data set's plan."""
        if not self._wanted("data"):
            return None
        return plan_publication(
            self._dataset,
            self._data_repo,
            private=self._options.private,
            licence=self._options.data_licence,
            base_repo=self._base,
            hashes=self._hashes,
            endpoint=self._endpoint,
            token=self._token,
            patience=self._patience,
        )

    @cached_property
    def _licence_of_facts(self) -> Licence | None:
        """The licence of facts that lie on the Hub, which goes for their results, too."""
        return licence_of_source(MasteryData(self._dataset).manifest, self.link)

    def commit_of_data(self) -> str:
        """The commit of the data set that was published before."""
        return self._data_commit().partition("@")[2]

    def _data_commit(self) -> str:
        own = {"mastery_dataset": {"fingerprint": MasteryData(self._dataset).fingerprint}}
        try:
            return pinned_dataset(self._data_repo, own, self.link)
        except HubError as error:
            raise HubError(f"the models need their graded data set on the Hub first (--only data): {error}") from None

    @property
    def _data_repo(self) -> str:
        return f"{self._options.to}/{self._name}-graded"

    @property
    def _results_repo(self) -> str:
        return f"{self._options.to}/{self._name}-results"

    @property
    def _results_there(self) -> str | None:
        """The results' repository where it is on the Hub when this is done."""
        there = self._wanted("results") or "main" in self._standing(self._results_repo, "dataset")
        return self._results_repo if there else None

    @property
    def _report_repo(self) -> str:
        return f"{self._options.to}/{self._name}-report"

    @property
    def _report_there(self) -> str | None:
        """The report's Space where it is on the Hub when this is done."""
        there = self._options.report_space or "main" in self._standing(self._report_repo, "space")
        return self._report_repo if there else None

    def _model_repo(self, cell: str) -> str:
        return f"{self._options.to}/{self._models}-{cell}"

    def _standing(self, repo_id: str, repo_type: RepoType = "model") -> Mapping[str, Repo]:
        """What the Hub has of a repository already, by branch; a plan that sends nothing does without the Hub."""
        if repo_id not in self._known:
            try:
                self._known[repo_id] = standing(repo_id, repo_type, self.link)
            except HubError:
                if not self._guess:
                    raise
                self._known[repo_id] = {}
        return self._known[repo_id]

    def _branches(self, cell: str) -> dict[str, str]:
        """Branch → level of the restored versions that are on the Hub when this is done, smallest level first."""
        sent = self._levels[cell] if self._wanted("restored", cell) else []
        there = [name.removeprefix(_BRANCH) for name in self._standing(self._model_repo(cell)) if _BRANCH in name]
        return {f"{_BRANCH}{level}": level for level in sorted({*sent, *there}, key=_share)}

    def _refreshed(self, plan: PublicationPlan) -> list[PublicationPlan]:
        """The plan as one that brings the card up to date, where all else on the Hub is what it would send."""
        there = self._standing(plan.repo_id, plan.repo_type)[plan.revision].hashes
        sent = {file.path: file.sha256 for file in plan.files if file.path not in (CARD, MANIFEST)}
        told = dict.fromkeys((EVAL_RESULTS, LEVELS_PICTURE))  # they go with the card
        same = {**there, **told} == {**sent, **told}
        return [dataclasses.replace(plan, refresh=True)] if same else []

    def _wanted(self, part: str, cell: str | None = None) -> bool:
        only = self._options.only
        return not only or part in only or cell in only

    def _of_cell(self, cell: str, data: str) -> list[PublicationPlan]:
        levels = self._levels[cell] if self._wanted("restored", cell) else []
        restored = [(self._run / "restored" / cell / level, f"{_BRANCH}{level}") for level in levels]
        if self._wanted("tuned", cell):
            main = [self._model(cell, self._run / "models" / cell, "main", data)]
        elif restored and "main" in self._standing(self._model_repo(cell)):
            main = self._refreshed(self._model(cell, self._run / "models" / cell, "main", data))
        else:
            main = []
        return [*main, *(self._model(cell, folder, branch, data) for folder, branch in restored)]

    def _model(self, cell: str, folder: Path, branch: str, data: str) -> PublicationPlan:
        return plan_publication(
            folder,
            self._model_repo(cell),
            private=self._options.private,
            revision=branch,
            branches=tuple(self._branches(cell)) if branch == "main" else (),
            results=self._results_there,
            report=self._report_there,
            licence=self._options.licence,
            licence_file=self._options.licence_file,
            base_repo=self._base,
            dataset_repo=data,
            hashes=self._hashes,
            endpoint=self._endpoint,
            token=self._token,
            patience=self._patience,
        )

    def _report(self, models: Sequence[PublicationPlan]) -> PublicationPlan:
        return plan_report_space(
            self._run,
            self._report_repo,
            name=self._options.name or self._run.resolve().name,
            private=self._options.private,
            datasets=(self._data_repo,),
            models=tuple(dict.fromkeys(plan.repo_id for plan in models)),
        )

    def _results(self, data: str) -> PublicationPlan:
        places: dict[str, tuple[str, str]] = {}
        for cell in self._cells:
            repo_id = self._model_repo(cell)
            if self._wanted("tuned", cell) or "main" in self._standing(repo_id):
                places[cell] = (repo_id, "main")
            places |= {f"{cell}@{level}": (repo_id, branch) for branch, level in self._branches(cell).items()}
        return plan_results(
            self._run,
            self._results_repo,
            name=self._options.name,
            licence=self._options.data_licence or self._licence_of_facts,
            private=self._options.private,
            base_repo=self._base,
            dataset_repo=data,
            places=places,
            hashes=self._hashes,
        )


def _share(folder: str) -> Fraction:
    """What to sort folders of levels by: the smallest level first."""
    return level_share(level_of_folder(folder))
