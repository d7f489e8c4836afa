"""Restoring beside its controls: is it the ranking that helps, or would any step back towards the base?

A run scores, at the level chosen for each restored model, as much set back at random and all weights moved towards the
base, by the same share and to the same distance (`sftknow.run.controls`). Everything here is in-domain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sftknow.artifacts.levels import CONTROLS
from sftknow.report.aggregate import Estimate, chosen_for, estimate, over_runs, pooled, question_variance
from sftknow.report.blocks import report_block
from sftknow.report.contents import Model, Report, Restored
from sftknow.report.entries import change_entry, percent, signed
from sftknow.report.layout import Entry, Field, Table, tabulate
from sftknow.report.words import TONES, Difference

SPLIT = "test"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One restored model at the level chosen for it."""

    level: str
    plain: Model
    restored: Model
    controls: Mapping[str, Sequence[Model]]
    """By kind, one a draw."""

    def gain(self, kind: str | None = None) -> float:
        """What restoring adds to the model as it was trained; or what a control adds, on average over its draws."""
        models = [self.restored] if kind is None else self.controls[kind]
        return float(np.mean([_accuracy(model) for model in models])) - _accuracy(self.plain)


@dataclass(frozen=True, kw_only=True)
class Controlled:
    """A restored training with those of its seeds whose controls were scored."""

    training: Restored
    runs: tuple[Run, ...]

    def gain(self, kind: str | None = None) -> float:
        return float(np.mean([run.gain(kind) for run in self.runs]))

    def against(self, kind: str) -> Difference:
        """What the ranking gains beyond a control: of one model over questions and draws, of several over seeds."""
        steps = over_runs([run.gain() - run.gain(kind) for run in self.runs], math.nan, 0)
        between, draws = steps.between, len(self.runs)
        if draws == 1:
            drawn = over_runs([_accuracy(model) for model in self.runs[0].controls[kind]], math.nan, 0)
            between = drawn.between
        without = steps.without if draws > 1 else None
        return pooled(steps.value, between, _within(self.runs, kind), without=without)


def controlled(report: Report) -> list[Controlled]:
    """Every restored training of which controls were scored, in the report's order."""
    found = []
    for training in report.restored_trainings:
        runs = [run for cell in training.runs if (run := _run(report, cell)) is not None]
        if runs:
            found.append(Controlled(training=training, runs=tuple(runs)))
    return found


def _run(report: Report, cell: str) -> Run | None:
    levels, chosen = report.restored(cell), chosen_for(report, cell)
    kinds = {kind: models for kind, models in report.controls(cell).get(chosen, {}).items() if all(map(_score, models))}
    if set(kinds) != set(CONTROLS) or not _score(levels[chosen]) or not _score(levels["0%"]):
        return None
    return Run(level=chosen, plain=levels["0%"], restored=levels[chosen], controls=kinds)


def _score(model: Model) -> Estimate | None:
    return estimate([model], SPLIT)


def _accuracy(model: Model) -> float:
    found = _score(model)
    return math.nan if found is None else found.value


def _within(runs: Sequence[Run], kind: str) -> float:
    """Variance over questions of the difference between the restored models and their controls."""
    return question_variance([run.restored for run in runs], [m for run in runs for m in run.controls[kind]], SPLIT)[0]


def ranking_gains(found: Sequence[Controlled]) -> dict[str, Difference]:
    """What the ranking gains beyond each control: the mean over trainings, with trainings as the units."""
    if len(found) == 1:
        return {kind: found[0].against(kind) for kind in CONTROLS}
    means = {}
    for kind in CONTROLS if found else ():
        steps = over_runs([one.gain() - one.gain(kind) for one in found], math.nan, 0)
        runs = [run for one in found for run in one.runs]
        means[kind] = pooled(steps.value, steps.between, _within(runs, kind), draws=len(found), without=steps.without)
    return means


def control_entry(found: Controlled | None, kind: str) -> Entry | None:
    """A control in Table 4: its accuracy and what it adds, in grey."""
    if found is None:
        return None
    gain, plain = found.gain(kind), float(np.mean([_accuracy(run.plain) for run in found.runs]))
    levels = " or ".join(dict.fromkeys(run.level for run in found.runs))
    extra = {"difference": 100 * gain}
    return Entry(
        text=percent(plain + gain),
        note=f"{signed(gain)} at {levels}",
        value=100 * (plain + gain),
        extra=extra,
        tone="control",
    )


@report_block("table-q", section="restoration", after="table-o")
def controls(report: Report) -> Table | None:
    """Table Q: what restoring gains at the chosen level, what the controls gain, and the difference."""

    def gain(kind: str | None, line: Controlled) -> Entry:
        value = line.gain(kind)
        return Entry(text=signed(value), value=100 * value, tone="control" if kind else "")

    def beyond(kind: str, line: Controlled) -> Entry | None:
        return change_entry(line.against(kind))

    return tabulate(
        controlled(report),
        Field("Trained on", lambda line: line.training.name),
        Field("Level", lambda line: ", ".join(dict.fromkeys(run.level for run in line.runs))),
        Field("Seeds", lambda line: len(line.runs)),
        Field("by relative change", partial(gain, None), group="Gain", unit="points"),
        *(Field(words, partial(gain, kind), group="Gain", unit="points") for kind, words in CONTROLS.items()),
        *(
            Field(words, partial(beyond, kind), group="The ranking beyond", unit="points")
            for kind, words in CONTROLS.items()
        ),
        id="table-q-controls",
        title="Table Q · Is it the ranking?",
        note="In-domain, at the level chosen for each model: what restoring the most changed share adds to a model as "
        "it was trained, what steps of that size back towards the base add that know no ranking (in grey; random "
        f"ones are means over draws), and the difference ± its standard error over questions, draws and seeds. {TONES}",
        stacked=True,
    )
