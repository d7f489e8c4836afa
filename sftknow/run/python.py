"""The commands as functions: `run`, `grade`, `evaluate`, `compare` and `diverge`.

A model is what a person writes on the command line: a folder as text or `Path`, ``org/name[@revision]``, or ``lab``.
What comes back is typed and has `to_pandas` and a view in notebooks (`sftknow.shown.Shown`).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

from sftknow.answers import Synonyms
from sftknow.artifacts.comparisons import Comparison
from sftknow.artifacts.divergence import DivergenceResult
from sftknow.artifacts.files import read_json
from sftknow.artifacts.mastery_data import MasteryData, check_place
from sftknow.artifacts.stages import RunDirectory
from sftknow.divergence.options import DivergenceOptions
from sftknow.errors import ModelError
from sftknow.facts.sources import FactSet, load_facts
from sftknow.facts.topics import load_topics
from sftknow.grading.options import GradingOptions
from sftknow.models.options import ModelOptions
from sftknow.models.pull import pull
from sftknow.models.resolving import resolve_model
from sftknow.recipes.load import load_recipe
from sftknow.recipes.schema import FactsSection
from sftknow.records import EvalRun, ModelRef, Split
from sftknow.report.findings import findings
from sftknow.report.summary import plain_words
from sftknow.run.comparing import compare_models
from sftknow.run.grading import describe_facts, grade_dataset, is_graded
from sftknow.shown import Shown

Say = Callable[[str], None]
"""Gets a line of progress now and then."""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class RunResult(Shown):
    """What a whole run left."""

    path: Path
    """The run directory."""
    report: Path
    """Its page."""
    sentences: tuple[str, ...]
    """What was found, in words."""
    recommended: str | None
    """The model that did best on dev, such as ``b2-n240-s0@5pct``; None where none was trained."""

    def headline(self) -> str:
        """The first sentence of what was found."""
        return self.sentences[0]

    def rows(self) -> list[dict[str, Any]]:
        """Every score of the run; see `sftknow.results`."""
        from sftknow.report.collect import results

        return [{str(name): value for name, value in row.items()} for row in results(self.path).to_dict("records")]


def run(
    recipe: str | Path = "lab",
    *,
    out: str | Path | None = None,
    model: str | Path | None = None,
    facts: str | Path | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    say: Say = _say,
) -> RunResult:
    """A whole experiment, from facts to report; a second call goes on where the first one stopped.

    Args:
        recipe: name of a recipe that ships, or a YAML file.
        out: the run directory; None for ``runs/<name of the recipe>``.
        model: in place of the recipe's.
        facts: in place of the recipe's, as `load_facts` takes them.
        settings: other keys of the recipe: ``{"grid.sizes": [60, 240]}``, or texts such as ``grid.sizes=[60,240]``.
        say: gets one line for each stage that begins.

    Raises:
        RecipeError: the recipe, or a setting, cannot be used.
        SftknowError: what the stages raise; what is done stays.
    """
    from sftknow.run.experiment import Experiment

    given = {"model.path": model, "facts.source": facts}
    texts = [setting(key, str(value)) for key, value in given.items() if value is not None]
    texts += [setting(*item) for item in settings.items()] if isinstance(settings, Mapping) else list(settings)
    wanted = load_recipe(recipe, texts)
    path = Path(out) if out else Path("runs") / wanted.name
    with RunDirectory(path) as directory:
        page = Experiment(wanted, directory, say=say).run()
    return read_run(path, page)


def read_run(path: Path, report: Path | None = None) -> RunResult:
    """What a run directory holds, finished or not."""
    from sftknow.report.collect import collect

    choice = read_json(path / "choice.json") if (path / "choice.json").is_file() else {}
    return RunResult(
        path=path,
        report=report or path / "report" / "report.html",
        sentences=tuple(plain_words(findings(collect(path)))),
        recommended=str(choice["model"]) if choice.get("model") else None,
    )


def setting(key: str, value: Any) -> str:
    """A recipe's key and value as `load_recipe` takes them; texts are quoted, so that nothing in them means more."""
    import json

    from sftknow.records import to_json

    return f"{key}={json.dumps(to_json(value), ensure_ascii=False)}"


def grade(
    model: str | Path,
    facts: str | Path | FactsSection = "quick",
    *,
    out: str | Path,
    options: GradingOptions | None = None,
    running: ModelOptions | None = None,
    force: bool = False,
    say: Say = _say,
) -> MasteryData:
    """Grade facts by how well a model masters them (paper, 3.1); a call that was cut off goes on.

    Args:
        model: the base.
        facts: as `load_facts` takes them, or a `FactsSection` with limit, columns, topics and synonyms.
        out: folder of the graded data set.
        options: how; None for the paper's 21 statements and 10 samples.
        running: device and dtype.
        force: grade again, though the same grading is there.
        say: gets a line now and then.

    Raises:
        ModelError, HubError: the model cannot be loaded.
        FactsError: the facts cannot be used.
        MasteryDataError: ``out`` holds something else.
    """
    options, running, out = options or GradingOptions(), running or ModelOptions(), Path(out).expanduser().absolute()
    check_place(out)
    wanted = facts if isinstance(facts, FactsSection) else FactsSection(source=str(facts))
    topics = load_topics(wanted.topics)
    found, synonyms = read_facts(wanted)
    for line in describe_facts(found, topics, options):
        say(line)
    ref = ModelRef.parse(str(model))
    base = resolve_model(ref.path, ref.revision, running.dtype)
    if not force and is_graded(out, base, found, topics, options):
        say(f"{out} holds this very grading by {base.name}; nothing to do (--force grades again)")
        return MasteryData(out)
    say(f"asking {base.name}")
    work = out.with_name(f".{out.name}.grading")
    grade_dataset(base, found, topics, synonyms, options, work=work, out=out, device=running.device)
    shutil.rmtree(work, ignore_errors=True)
    return MasteryData(out)


def read_facts(wanted: FactsSection) -> tuple[FactSet, Synonyms]:
    """The facts that a section names, and the synonyms that they were read with."""
    synonyms = Synonyms.load(wanted.synonyms, numbers=wanted.numbers)
    drawn = partial(load_facts, limit=wanted.limit, seed=wanted.seed, disjoint=wanted.disjoint, columns=wanted.columns)
    topics = load_topics(wanted.topics)
    return drawn(wanted.source, topics=topics, synonyms=synonyms), synonyms


@overload
def evaluate(
    model: str | Path,
    mastery: str | Path | MasteryData | None = None,
    *,
    splits: Sequence[Split] = ...,
    out: str | Path | None = ...,
    limit: int | None = ...,
    few_shot: int = ...,
    running: ModelOptions | None = ...,
) -> EvalRun: ...


@overload
def evaluate(
    model: Any,
    mastery: str | Path | MasteryData,
    *,
    tokenizer: Any,
    splits: Sequence[Split] = ...,
    limit: int | None = ...,
    few_shot: int = ...,
    running: ModelOptions | None = ...,
) -> EvalRun: ...


def evaluate(
    model: Any,
    mastery: str | Path | MasteryData | None = None,
    *,
    tokenizer: Any = None,
    splits: Sequence[Split] = ("test", "testood"),
    out: str | Path | None = None,
    limit: int | None = None,
    few_shot: int = 0,
    running: ModelOptions | None = None,
) -> EvalRun:
    """Accuracy for each mastery bucket, as ``lm_eval --tasks cbqa_mastery`` gives it.

    Args:
        model: one that is named, or a loaded transformers model.
        mastery: the graded data set: a folder, ``org/name`` or what `grade` returned; None for that which a named model
            names.
        tokenizer: of a loaded model.
        splits: which parts to score.
        out: where scores and answers go; a call that was cut off goes on. For a named model.
        limit: score only the first questions of every bucket.
        few_shot: solved training questions before every question.
        running: device, dtype and batch size.

    Raises:
        ModelError, HubError: the model cannot be loaded, or a loaded one comes without its tokenizer.
        MasteryDataError: there is no data set, or it cannot be used.
    """
    running = running or ModelOptions()
    data = mastery.folder if isinstance(mastery, MasteryData) else mastery
    if isinstance(model, (str, Path)):
        from sftknow.run.scoring import score_models

        ref = ModelRef.parse(str(model), dtype=running.dtype)
        (scored,) = score_models(
            [ref],
            None if data is None else str(data),
            splits=splits,
            batch_size=running.batch_size,
            device=running.device,
            out=Path(out) if out else None,
            limit=limit,
            few_shot=few_shot,
        )
        return scored.scores
    if tokenizer is None or data is None:
        raise ModelError(
            "a loaded model is scored with its tokenizer and a graded data set: evaluate(model, data, tokenizer=…)"
        )
    from sftknow.evaluation.harness import Harness

    harness = Harness(str(data), splits=splits, batch_size=running.batch_size, limit=limit, few_shot=few_shot)
    name = getattr(getattr(model, "config", None), "name_or_path", "") or "loaded model"
    return harness.score(model, tokenizer, name=name)


def compare(
    a: str | Path,
    b: str | Path,
    *,
    run: str | Path | None = None,
    mastery: str | Path | MasteryData | None = None,
    splits: Sequence[Split] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    out: str | Path | None = None,
    running: ModelOptions | None = None,
) -> Comparison:
    """Two models on the same questions; see `sftknow.run.comparing.compare_models`, whose arguments these are.

    Args:
        a: the one that differences start from: a model, an evaluation's folder, or a name within ``run``.
        b: the other.
        run: the run directory that holds the names.
        mastery: the graded data set; None for that of the side that has one.
        splits: as there.
        resamples: as there.
        seed: as there.
        out: as there.
        running: how sides without an evaluation are scored.
    """
    return compare_models(
        str(a),
        str(b),
        run=Path(run) if run else None,
        dataset=data_folder(mastery) if mastery else None,
        splits=splits,
        resamples=resamples,
        seed=seed,
        out=Path(out) if out else None,
        scoring=running,
    )


def diverge(
    base: str | Path,
    tuned: str | Path,
    mastery: str | Path | MasteryData,
    *,
    options: DivergenceOptions | None = None,
    out: str | Path | None = None,
) -> DivergenceResult:
    """How far fine-tuning moved the first predicted token (paper, 4.1).

    Args:
        base: the pretrained model.
        tuned: the fine-tuned one.
        mastery: facts that the base was graded on.
        options: how.
        out: where ``divergence.json`` and the examples go.

    Raises:
        MasteryDataError, ModelError, CheckpointError: as `sftknow.run.token_pairs.diverge_pairs`.
    """
    from sftknow.run.token_pairs import diverge_pairs

    options = options or DivergenceOptions()
    first, second = (ModelRef.parse(str(model), dtype=options.dtype) for model in (base, tuned))
    (found,) = diverge_pairs(first, [second], data_folder(mastery), options, out=Path(out) if out else None)
    return found


def data_folder(mastery: str | Path | MasteryData) -> Path:
    """The graded data set as a local folder; one on the Hub is pulled."""
    if isinstance(mastery, MasteryData):
        return mastery.folder
    text = str(mastery)
    if Path(text).is_dir() or text.count("/") != 1 or text.startswith((".", "/", "~")):
        return Path(text).expanduser()
    return pull(text, repo_type="dataset")
