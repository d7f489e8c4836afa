"""The first screen of the page: one sentence that answers, one figure, five words.

It is about one model: the one that the run chose, with the level chosen for it; else the best training's first draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sftknow.artifacts.choice import FORM
from sftknow.records import BUCKETS
from sftknow.report.aggregate import compare, measured, ranked
from sftknow.report.contents import BASE, Model, Report
from sftknow.report.entries import percent, signed
from sftknow.report.frame import Score
from sftknow.report.layout import Figure, Row, figure
from sftknow.report.style import GREEN, INK, MUTED, RED, chart
from sftknow.report.summary import broken_words, format_words
from sftknow.report.words import hedge
from sftknow.stats import NORMAL_95, wilson

GLOSSARY = {
    "Mastery bucket": "how often the base model completed a statement of the fact with the right answer: bucket 0 "
    "never, bucket 4 in more than three quarters of the samples.",
    "In-domain, out-of-domain": "test questions of the kinds of fact that were trained on, and of other kinds. No test "
    "fact was trained on.",
    "Contains, exact match": "an answer counts as right where it contains the expected one (the paper’s measure, "
    "meant where nothing else is said); exact match wants nothing beside it.",
    "Restoring a level": "setting that share of the parameters, those that fine-tuning changed most, back to the "
    "base’s values.",
    "Surely": "chance would give such a difference in less than 5 % of cases, corrected for all that were compared. "
    "Behind ± stands one standard error; two or three seeds tell it only roughly, so that more is needed to be sure.",
}
"""Five words that the page uses, in plain English."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model that the first screen is about, in its stages."""

    cell: str
    title: str
    level: str
    """Restored; ``0%`` for nothing."""
    stages: Mapping[str, Model]
    """By what they are called: base, fine-tuned, restored; as far as they were scored."""

    @property
    def tuned(self) -> Model:
        return self.stages["fine-tuned"]


def subject(report: Report) -> Subject | None:
    """The model that is shown first; None where no fine-tuned one was scored."""
    choice = report.choice if report.choice and report.choice.cell in report.models else None
    if choice:
        cell = choice.cell
    else:
        order = ranked(report, report.trainings, report.choosing_split, "both")
        if not order:
            return None
        cell = order[0][0].models[0].name
    level = choice.level if choice else "0%"
    stages = {"base": report.models[BASE]} if BASE in report.models else {}
    stages["fine-tuned"] = report.models[cell]
    restored = report.restored(cell).get(level)
    if level != "0%" and restored is not None:
        stages[f"{level} restored"] = restored
    return Subject(cell=cell, title=report.phrase(cell), level=level, stages=stages)


def answer(report: Report, found: Mapping[str, Any]) -> str:
    """One sentence: what fine-tuning did to answers, how much of that is form, and whether restoring helps.

    Args:
        report: the run.
        found: what `findings` gives.
    """
    shown = subject(report)
    if shown is None:
        base = found.get("base", {}).get("test")
        if base is None:
            return "No model is scored yet: so far this run says what the base model knows, below."
        return f"The base model answers {percent(base['value'])} % of the questions; no fine-tuned model is scored yet."
    tuned = measured([shown.tuned], "test")
    if tuned is None:
        return f"The model trained on {shown.title} was not asked the in-domain test questions."
    said = f"Fine-tuned on {shown.title}, the model answers {percent(tuned.acc)} % of the in-domain questions"
    base_model = shown.stages.get("base")
    before = measured([base_model], "test") if base_model else None
    if base_model and before:
        gain = compare([shown.tuned], [base_model], "test", same_runs=True)
        said += f" where its base answers {percent(before.acc)} %"
        said += hedge(gain.part()) if gain else ""
        values = ", ".join(
            f"{words} {percent(before.beside[name])} → {percent(tuned.beside[name])} %"
            for name, words in FORM.items()
            if {name} <= before.beside.keys() & tuned.beside.keys()
            and percent(before.beside[name]) != percent(tuned.beside[name])
        )
        said += ", but breaks the form of answers" if tuned.broken(before) else ""
        said += f" ({values})" if values else ""
    form = format_words(found.get("format", {}))
    return f"{said}; {f'{form}; ' if form else ''}{_restoring(found)}."


def _restoring(found: Mapping[str, Any]) -> str:
    part = found.get("restoration", {})
    test = part.get("test")
    if not test:
        return "nothing was restored"
    level = part["level"]
    if level == "0%":
        return "setting changed parameters back to the base’s values makes it no better"
    what, points = f"setting the {level} that changed most back", f"{signed(test['value'])} points"
    if part["broken"]:
        return f"{what} changes that by {points} and costs {broken_words(part['broken'])}"
    if not test["sure"]:
        return f"{what} makes no difference that can be told ({points})"
    return f"{what} {'lifts' if test['value'] > 0 else 'lowers'} that to {percent(test['after'])} % ({points})"


def interval(score: Score, mean: bool) -> tuple[float, float]:
    """95 % interval of an accuracy: Wilson's for one bucket, the normal one for a mean over buckets."""
    if mean:
        reach = NORMAL_95 * score.stderr
        return max(0.0, score.value - reach), min(1.0, score.value + reach)
    return wilson(score.value * score.count, score.count)


_KNOWN = ("never", "up to 25 %", "25 to 50 %", "50 to 75 %", "over 75 %")
"""How often the base completed a bucket's facts."""

COLOURS = (MUTED, RED, GREEN)
"""Of the stages: base, fine-tuned, restored."""


def picture(report: Report) -> Figure | None:
    """The stages of the model that is shown first, bucket by bucket, with 95 % intervals; each mark says its number."""
    shown = subject(report)
    if shown is None or not shown.tuned.score("test"):
        return None
    places: Sequence[int | None] = [
        *(b for b in reversed(BUCKETS) if any(m.score("test", b) for m in shown.stages.values())),
        None,
    ]
    rows: list[Row] = []
    highs: list[float] = []
    step, group = 0.23, 0.23 * len(shown.stages) + 0.34
    title = "From base to fine-tuned to restored, in-domain"
    with chart(
        id="figure-f-answer",
        title=title,
        xlabel="right answers (%), with 95 % intervals",
        lead=" by mastery bucket.",
        height=0.9 + 0.68 * len(places) * group,
    ) as made:
        axes = made.axes
        ticks = []
        for row, bucket in enumerate(places):
            middle = row * group + step * (len(shown.stages) - 1) / 2
            ticks.append((middle, "all, mean" if bucket is None else f"bucket {bucket}\n{_KNOWN[bucket]}"))
            for place, ((name, model), colour) in enumerate(zip(shown.stages.items(), COLOURS, strict=False)):
                score = model.score("test", bucket)
                if score is None or score.count == 0:
                    continue
                y = row * group + place * step
                low, high = (100 * end for end in interval(score, bucket is None))
                value = 100 * score.value
                axes.plot([low, high], [y, y], color=colour, linewidth=1.5, solid_capstyle="butt")
                axes.plot([value], [y], "osD"[place], color=colour)
                words = f"{name} {value:.0f}" if row == 0 else f"{value:.0f}"
                axes.annotate(
                    words, (high, y), xytext=(5, 0), textcoords="offset points", va="center", color=INK, fontsize=9
                )
                rows.append(("mean" if bucket is None else bucket, name, value, low, high, score.count))
                highs.append(high)
        for name in shown.stages:
            at = ", ".join(f"{found[2]:.0f} in bucket {found[0]}" for found in rows if found[1] == name)
            made.said.append(f"{name}: {at}".replace("in bucket mean", "on average"))
        axes.set_yticks([y for y, _ in ticks], [text for _, text in ticks])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        highest = max(highs)
        # Room for the names behind the marks of the first line.
        axes.set_xlim(-2, max(highest * 1.12, max(highs[: len(shown.stages)]) + 0.34 * highest))
        axes.set_xticks([tick for tick in range(0, 101, 20) if tick <= highest + 5])
    return figure(
        [made.panel],
        id="figure-f-answer",
        title=title,
        note=f"Trained on {shown.title}. How well the base knew the facts before grows from bucket 0 to bucket 4.",
        columns=("bucket", "model", "accuracy (%)", "low", "high", "questions"),
        rows=rows,
    )
