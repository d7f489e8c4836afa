"""A run's results as a data set repository: scores, divergences, parameter changes and the report."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from huggingface_hub import DatasetCardData

from sftknow import __version__
from sftknow.artifacts.choice import BESIDE, FORM
from sftknow.artifacts.divergence import reading_of
from sftknow.artifacts.files import read_json, visible_files
from sftknow.artifacts.levels import level_of_folder, level_share
from sftknow.artifacts.manifests import FORMAT
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.artifacts.scores import QUESTIONS, metrics_to_json, read_questions, read_scores
from sftknow.errors import HubError
from sftknow.models.hub_client import check_repo_id
from sftknow.models.pull import RESULTS
from sftknow.publishing.cards import GradedData, Licence, Source
from sftknow.publishing.contexts import licence_of_facts, manifest_name, named_source, source_of
from sftknow.publishing.licences import check_named
from sftknow.publishing.plan import Hashes, PublicationPlan, assemble, hashed, without_local_paths
from sftknow.publishing.rendering import SPLIT_WORDS, refuse_blanks, render
from sftknow.records import EvalRun, MetricValue, Split, TokenDivergence
from sftknow.untrusted import parse_json

SCORES, ANSWERS = "scores.parquet", "answers.parquet"
SPLIT = "full"
"""Of the table of scores in `datasets`, which keeps the name ``all`` for itself and loads no data set that has it."""
_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("task", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("stderr", pa.float64()),
        ("count", pa.int64()),
    ]
)
_TEXT = (".json", ".yaml", ".html", ".csv", ".md", ".svg", ".txt")
_PARTS: Mapping[str, str] = {
    "recipe.yaml": "what was asked for",
    "provenance.json": "versions, seeds and hashes",
    "choice.json": "which model was chosen, and on which split",
    "evaluation": "scores and every answer, model by model",
    "divergence": "token divergence, model by model",
    "changes": "parameter change and restoration plans, model by model",
    "facts": "how often the lab's model saw each fact",
    "report": "the report, with its tables and figures",
}


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """One scored model of a run and where it is on the Hub."""

    name: str
    """In the run, such as ``b2-n240-s0@5pct``."""
    values: Mapping[str, MetricValue]
    """Task or group → containment accuracy."""
    beside: Mapping[str, Mapping[str, MetricValue]]
    """What stands beside it: metric → task or group → value."""
    repo_id: str | None
    """None where it is not published."""
    branch: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the run chose."""

    model: str
    chosen_on: str


@dataclass(frozen=True, kw_only=True)
class ResultsCardContext:
    """Everything the card of a run's results says."""

    repo_id: str
    run: str
    licence: Licence
    base: Source
    data: GradedData
    models: tuple[PublishedModel, ...]
    choice: Choice | None
    circumstances: Mapping[str, str]
    """Machine, seeds and versions, as text."""
    parts: Mapping[str, str]
    """What lies in the repository, and what it is."""
    answers: bool = False
    """Whether there is a table of all answers."""
    sftknow_version: str


def plan_results(
    run: Path,
    repo_id: str,
    *,
    name: str | None = None,
    private: bool = True,
    licence: Licence | None = None,
    base_repo: str | None = None,
    dataset_repo: str | None = None,
    places: Mapping[str, tuple[str, str]] | None = None,
    hashes: Hashes | None = None,
) -> PublicationPlan:
    """Plan the publication of what a run measured. Nothing is sent.

    Args:
        run: the run directory.
        repo_id: ``org/name``.
        name: what the run is called; None for its directory's name.
        private: who may see it.
        licence: of the facts, whose questions are in it; None takes that of the facts' source.
        base_repo, dataset_repo: ``org/name@commit`` on the Hub, where the run knows folders only.
        places: the run's models on the Hub: name → (repository, branch).
        hashes: taken before; new ones are added.

    Raises:
        HubError: nothing was scored yet, or the licence is missing.
    """
    check_repo_id(repo_id)
    folders = {path.parent.name: path.parent for path in (run / "evaluation").glob("*/scores.json")}
    scores = {name: read_scores(folders[name]) for name in sorted(folders, key=_order)}
    if not scores:
        raise HubError(f"{run} has no scores yet: let `sftknow run` finish, or publish its parts", repo_id=repo_id)
    parts = [run / part for part in _PARTS]
    files = [file for part in parts for file in ([part] if part.is_file() else visible_files(part))]
    paths = [file.relative_to(run).as_posix() for file in files]
    answers = _answers(run, scores)
    context = _context(run, repo_id, scores, licence, base_repo, dataset_repo, places or {}, paths)
    context = dataclasses.replace(context, run=name or context.run, answers=bool(answers))
    refuse_blanks(context, repo_id)
    clean = public_text(run)
    made = {path: clean(run / path) for path in paths if path.endswith(_TEXT)}
    head = {
        "sftknow": FORMAT,
        "kind": RESULTS,
        "run": context.run,
        "base": {"path": manifest_name(context.base), "revision": context.base.revision},
        "mastery_dataset": {
            "repo": context.data.source.hub_id,
            "revision": context.data.source.revision,
            "fingerprint": context.data.fingerprint,
        },
        "models": {m.name: {"repo": m.repo_id, "branch": m.branch} for m in context.models if m.repo_id},
    }
    return assemble(
        run,
        repo_id,
        repo_type="dataset",
        private=private,
        revision="main",
        files=hashed({path: run / path for path in paths if path not in made}, hashes or Hashes()),
        made={**made, SCORES: _score_table(scores), **answers},
        card=render_results_card(context),
        head=head,
        what="results",
    )


def _order(name: str) -> tuple[bool, str, Fraction]:
    """The base first, then model by model, each with its levels, the smallest first."""
    cell, _, level = name.partition("@")
    return cell != "base", cell, level_share(level_of_folder(level)) if level else Fraction(0)


def _answers(run: Path, scores: Mapping[str, EvalRun]) -> dict[str, bytes]:
    """Every answer of every model in one table, with the model's name; nothing where a model's were not kept."""
    tables = []
    for name in scores:
        path = run / "evaluation" / name / QUESTIONS
        if not path.is_file():
            return {}
        table = read_questions(path.parent)
        tables.append(table.add_column(0, "model", pa.array([name] * table.num_rows, pa.string())))
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), buffer)
    return {ANSWERS: buffer.getvalue()}


def render_results_card(context: ResultsCardContext) -> str:
    """The README.md of a run's results."""
    splits: list[Split] = [s for s in SPLIT_WORDS if any(f"cbqa_mastery_{s}" in m.values for m in context.models)]
    tasks = [f"cbqa_mastery_{split}" for split in splits]
    form = {
        name: words for name, words in FORM.items() if any(set(tasks) & set(m.beside[name]) for m in context.models)
    }
    return render(
        "results_card.md.j2", card=context, metadata=_metadata(context).to_yaml(), splits=splits, whole=SPLIT, form=form
    )


def _metadata(context: ResultsCardContext) -> DatasetCardData:
    return DatasetCardData(
        language=["en"],
        **context.licence.metadata,
        tags=["sftknow", "closed-book-qa", "evaluation-results"],
        pretty_name=f"Results of the run {context.run}",
        source_datasets=[context.data.source.hub_id] if context.data.source.hub_id else None,
        configs=[
            {"config_name": name, "data_files": [{"split": SPLIT, "path": path}]}
            for name, path in (("scores", SCORES), ("answers", ANSWERS))
            if name == "scores" or context.answers
        ],
    )


def _context(
    run: Path,
    repo_id: str,
    scores: Mapping[str, EvalRun],
    licence: Licence | None,
    base_repo: str | None,
    dataset_repo: str | None,
    places: Mapping[str, tuple[str, str]],
    paths: list[str],
) -> ResultsCardContext:
    data = MasteryData(run / "mastery" / "dataset")
    known = read_json(run / "provenance.json")
    choice = read_json(run / "choice.json") if (run / "choice.json").is_file() else None
    terms = licence or licence_of_facts(data.manifest)
    if terms is None:
        raise HubError(
            f"no licence is known for {repo_id}: pass the licence of the source of its facts (--data-licence)",
            repo_id=repo_id,
        )
    check_named(terms, repo_id)
    source = named_source(dataset_repo) if dataset_repo else Source(name="a folder", hub_id=None, revision=None)
    there = {path.split("/")[0] for path in paths}
    base = named_source(base_repo) if base_repo else source_of({"path": known["base"]["name"]}, run)
    places = {**places, **({"base": (base.hub_id, "main")} if base.hub_id else {})}
    return ResultsCardContext(
        repo_id=repo_id,
        run=run.resolve().name,
        licence=terms,
        base=base,
        data=GradedData(source=source, fingerprint=data.fingerprint),
        models=tuple(_model(name, found, places) for name, found in scores.items()),
        choice=Choice(model=choice["model"], chosen_on=choice["chosen_on"]) if choice else None,
        circumstances={**_circumstances(known), **_reading(run)},
        parts={path: meaning for path, meaning in _PARTS.items() if path in there},
        sftknow_version=__version__,
    )


def _model(name: str, scores: EvalRun, places: Mapping[str, tuple[str, str]]) -> PublishedModel:
    repo_id, branch = places.get(name, (None, "main"))
    values = {metric.task: metric for metric in scores.metrics if metric.metric == "acc"}
    beside = {name: {m.task: m for m in scores.metrics if m.metric == name} for name in BESIDE}
    return PublishedModel(name=name, values=values, beside=beside, repo_id=repo_id, branch=branch)


def _circumstances(known: Mapping[str, Any]) -> dict[str, str]:
    versions = ", ".join(f"{name} {version}" for name, version in known["packages"].items() if name != "sftknow")
    seeds = ", ".join(f"{name} {value}" for name, value in known["seeds"].items())
    return {"device": str(known["device"]), "seeds": seeds, "versions": versions}


def _reading(run: Path) -> dict[str, str]:
    """How the divergences were measured, as a line of the card; nothing where there are none or they differ."""
    found = {reading_of(TokenDivergence.from_json(**read_json(p))) for p in run.glob("divergence/*/divergence.json")}
    return {"token divergence": found.pop()} if len(found) == 1 else {}


def _score_table(scores: Mapping[str, EvalRun]) -> bytes:
    rows = [{"model": name, **row} for name, run in scores.items() for row in metrics_to_json(run.metrics)]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), buffer)
    return buffer.getvalue()


def public_text(run: Path) -> Callable[[Path], bytes]:
    """What gives the content of a run's file, a text without the paths of this machine."""
    places = _places_of_this_machine(run)

    def clean(path: Path) -> bytes:
        if path.suffix not in _TEXT:
            return path.read_bytes()
        return _scrubbed(path.read_text(encoding="utf-8"), places).encode()

    return clean


def _places_of_this_machine(run: Path) -> list[str]:
    """Absolute paths that a run's texts may hold: nobody else has them, and they tell who and where. Longest first."""
    found = {str(run.resolve()), str(Path.home())}

    def gather(value: Any) -> None:
        if isinstance(value, Mapping):
            for entry in value.values():
                gather(entry)
        elif isinstance(value, list):
            for entry in value:
                gather(entry)
        elif isinstance(value, str) and without_local_paths(value) != value:
            found.add(value)

    for path in (run / "recipe.yaml", run / "provenance.json"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            gather(yaml.safe_load(text) if path.suffix == ".yaml" else parse_json(text, path))
    return sorted((place for place in found if len(place) > 1), key=len, reverse=True)


def _scrubbed(text: str, places: list[str]) -> str:
    for place in places:
        text = text.replace(place, Path(place).name)
    return text
