"""How the trainings went, and every model by itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from sftknow.artifacts.levels import level_share
from sftknow.records import SPLITS
from sftknow.report.blocks import report_block
from sftknow.report.contents import BASE, SPLIT_TITLES, Report
from sftknow.report.entries import accuracy_of, number_entry
from sftknow.report.layout import Entry, Field, Figure, Table, figure, tabulate
from sftknow.report.style import chart, look, use_space


@report_block("figure-c", section="accuracy")
def loss(report: Report) -> Figure | None:
    """Figure C: training loss of each source's largest size."""
    largest = {t.source: t for t in report.every_training if any(c.name in report.losses for c in t.cells)}
    if not largest:
        return None
    with chart(
        id="figure-c-loss",
        title="Training loss",
        xlabel="training step",
        ylabel="loss (nats per token)",
        lead=" by step.",
    ) as made:
        drawn: list[float] = []
        for training in largest.values():
            style = look(training.bucket, training.source)
            curve = next(report.losses[c.name] for c in training.cells if c.name in report.losses)
            steps, values = [s for s, _ in curve], [v for _, v in curve]
            drawn += values
            made.axes.plot(
                steps,
                values,
                color=style.colour,
                marker=style.marker,
                markevery=max(1, len(steps) // 8),
                linestyle=style.line,
                linewidth=1.3,
                label=f"{training.trained_on}, {training.size:,}",
            )
            made.said.append(f"{training.title}: from {values[0]:.2f} to {values[-1]:.2f} in {steps[-1]:.0f} steps")
        use_space(made.axes, drawn)
    names = sorted(report.losses, key=report.order)
    return figure(
        [made.panel],
        id="figure-c-loss",
        title="Figure C · Training loss",
        note="The largest training of each source, its first seed; over answer tokens alone. The data hold every "
        "model’s curve.",
        columns=("model", "step", "loss (nats)"),
        rows=[(name, step, value) for name in names for step, value in report.losses[name]],
    )


@report_block("table-d", section="accuracy")
def training(report: Report) -> Table | None:
    """Table D: steps and loss of each cell."""

    def last_fifth(curve: Sequence[tuple[float, float]]) -> Entry:
        return number_entry(float(np.mean([loss for _, loss in curve[-max(1, len(curve) // 5) :]])))

    return tabulate(
        ((report.title(name), report.losses[name]) for name in sorted(report.losses, key=report.order)),
        Field("Trained on", lambda line: line[0]),
        Field("Steps", lambda line: int(line[1][-1][0])),
        Field("First loss", lambda line: number_entry(line[1][0][1])),
        Field("Last loss", lambda line: last_fifth(line[1])),
        id="table-d-training",
        title="Table D · Training",
        note="Loss over answer tokens, in nats a token: the first one logged, and the mean over the last fifth of "
        "those logged.",
        folded=True,
    )


@report_block("table-c", section="accuracy")
def every_model(report: Report) -> Table | None:
    """Table C: one line a model, restored ones included."""
    splits = report.scored(*SPLITS)

    def order(name: str) -> tuple[Any, ...]:
        owner, _, level = name.partition("@")
        return (owner != BASE, report.order(owner), level_share(level.replace("pct", "%")) if level else -1)

    def shown(split: str, name: str) -> Entry:
        return accuracy_of(split, None, "acc", [report.models[name]])

    return tabulate(
        sorted(report.models, key=order) if splits else [],
        Field("Model", str),
        *(Field(SPLIT_TITLES[split], partial(shown, split), unit="%") for split in splits),
        id="table-c-models",
        title="Table C · Every model",
        note="Mean over buckets of each split the model was scored on, with its standard error over questions.",
        folded=True,
    )
