"""What was run and what cannot be told from it: the words and tables that frame the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sftknow.artifacts.levels import read_control
from sftknow.records import BUCKETS
from sftknow.report.blocks import report_block
from sftknow.report.contents import BASE, Report
from sftknow.report.entries import percent
from sftknow.report.layout import Entry, Field, Table, tabulate

PAPER_TRIES = 210
"""21 statements × 10 samples (paper, 3.3)."""


def subtitle(report: Report) -> str:
    """One line under the title."""
    parts = []
    if report.graded:
        parts.append(f"{len(report.graded.fact_ids):,} facts graded by {report.graded.graded_by}")
    tuned = len([n for n in report.models if n in report.cells])
    restored = len([n for n in report.models if "@" in n and not read_control(n.partition("@")[2])])
    if tuned:
        parts.append(f"{tuned} fine-tuned {'model' if tuned == 1 else 'models'} scored")
    if restored:
        parts.append(f"{restored} restored {'model' if restored == 1 else 'models'} scored")
    return " · ".join(parts) or "a run that has just begun"


def _sizes(report: Report) -> str:
    found = sorted({(g.all, g.size) for g in report.every_training})
    plain = [f"{size:,}" for whole, size in found if not whole]
    return ", ".join([*plain, *(["all"] if any(whole for whole, _ in found) else [])])


@report_block("run-sheet", section="run")
def sheet(report: Report) -> Table | None:
    """The run in a few lines."""
    lines: list[tuple[str, str]] = []
    base: Mapping[str, Any] = next(
        (m["base"] for m in report.manifests.values() if isinstance(m.get("base"), Mapping)), {}
    )
    if report.graded:
        policy, tries = report.graded.policy, report.graded.tries
        lines.append(("Base model, as graded", report.graded.graded_by))
        low, high = int(tries.min()), int(tries.max())
        per_fact = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        detail = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in policy.items() if isinstance(v, (int, float, str)))
        lines.append(("Samples a fact", f"{per_fact} (paper: {PAPER_TRIES}){'; ' + detail if detail else ''}"))
        lines.append(
            ("Graded data set", f"{len(report.graded.fact_ids):,} facts, fingerprint {report.graded.fingerprint[:16]}")
        )
    if base:
        lines.append(("Base model, as fine-tuned", "@".join(str(base[k]) for k in ("path", "revision") if base.get(k))))
    if report.cells:
        sources = {c.source: c.trained_on for c in sorted(report.cells.values(), key=lambda c: c.name)}
        lines.append(("Trained on", ", ".join(sources.values())))
        lines.append(("Training facts", _sizes(report)))
        lines.append(("Seeds", ", ".join(str(s) for s in sorted({c.seed for c in report.cells.values()}))))
    lines += _fine_tuning(report)
    lines += [("Region of parameters", region) for region in sorted({c.region for c in report.changes.values()})]
    rankings = {
        f"{plan.get('strategy', 'top')} by relative change, ε {_short(plan.get('epsilon', 'unknown'))}, arithmetic "
        f"{plan.get('arithmetic', 'float32')}"
        for plan in report.plans.values()
    }
    lines += [("Ranking of elements", ranking) for ranking in sorted(rankings)]
    if report.choice:
        lines.append(
            ("Restoration chosen", f"{report.choice.level} of {report.choice.cell}, on {report.choice.chosen_on}")
        )
    return _pairs("run-sheet", "The run", "", lines, folded=False)


def _short(value: Any) -> str:
    """A setting as a person would write it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_short(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return " and ".join(_short(item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fine_tuning(report: Report) -> list[tuple[str, str]]:
    """How the models were trained: the settings of the first, and where others differ from it, what differs."""
    lines: list[tuple[str, str]] = []
    plain: Mapping[str, Any] = {}
    told: set[str] = set()
    for name in sorted(report.manifests, key=report.order):
        sft: Mapping[str, Any] = (report.manifests[name].get("sft") or {}).get("recipe") or {}
        if sft and not plain:
            plain = sft
            lines.append(("Fine-tuning", _settings(sft)))
        other = _settings({key: value for key, value in sft.items() if plain.get(key) != value})
        cell = report.cells.get(name)
        title = cell.trained_on if cell else name
        if other and f"{title} {other}" not in told:
            told.add(f"{title} {other}")
            lines.append((f"Fine-tuning, {title}", f"as above, but {other}"))
    return lines


def _settings(values: Mapping[str, Any]) -> str:
    """Settings in one line, without those that nobody set."""
    found = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found.append(f"{key} ({_short(value)})")
        elif value is not None:
            found.append(f"{key.replace('_', ' ')} {_short(value)}")
    return ", ".join(found)


def _pairs(id: str, title: str, note: str, lines: Sequence[tuple[str, str]], *, folded: bool) -> Table | None:
    return tabulate(
        lines,
        Field("What", lambda line: line[0]),
        Field("Value", lambda line: line[1]),
        id=id,
        title=title,
        note=note,
        folded=folded,
        words=True,
    )


@report_block("run-times", section="run")
def stage_times(report: Report) -> Table | None:
    """Wall-clock time of each kind of stage."""
    lines = sorted(report.seconds.items(), key=lambda pair: -pair[1])
    return tabulate(
        [*lines, ("all stages", sum(report.seconds.values()))] if lines else [],
        Field("Stage", lambda line: line[0]),
        Field("Time", lambda line: Entry(text=f"{line[1]:,.1f}", value=line[1]), unit="s"),
        id="run-times",
        title="Time",
        note="Wall-clock time of the finished stages; a stage that was cut off and continued counts from its first "
        "start.",
        folded=True,
    )


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings and lists as (dotted name, text); a list of plain values stays in one line."""
    if isinstance(value, Mapping):
        return [pair for k, v in value.items() for pair in flatten(v, f"{prefix}.{k}" if prefix else str(k))] or [
            (prefix, "none")
        ]
    if isinstance(value, (list, tuple)):
        if any(isinstance(v, (Mapping, list, tuple)) for v in value):
            return [pair for i, v in enumerate(value) for pair in flatten(v, f"{prefix}[{i}]")]
        return [(prefix, ", ".join(_short(v) for v in value) or "none")]
    return [(prefix, "none" if value is None or value == "" else _short(value))]


@report_block("run-recipe", section="run")
def recipe(report: Report) -> Table | None:
    """The resolved recipe."""
    lines = flatten(report.recipe) if report.recipe else []
    return _pairs("run-recipe", "Recipe", "As resolved, from recipe.yaml.", lines, folded=True)


@report_block("run-provenance", section="run")
def provenance(report: Report) -> Table | None:
    """Versions, revisions, hashes."""
    lines = flatten(report.provenance) if report.provenance else []
    return _pairs("run-provenance", "Provenance", "From provenance.json.", lines, folded=True)


def limits(report: Report) -> list[str]:
    """What a reader should not conclude, as far as this run's own numbers say so."""
    said = []
    found = report.trainings
    seeds = sorted({len(g.cells) for g in found})
    if found and seeds[0] < 2:
        said.append(
            "At least one training was run with a single seed. Its error covers the choice of test questions, not "
            "the luck of one draw of training facts; another seed may move it by more than ± says."
        )
    elif found and seeds[0] < 5:
        said.append(
            f"{seeds[0]} seeds a training (the paper has five draws): a spread over so few is itself uncertain."
        )
    counts = _question_counts(report)
    if counts:
        low, high = min(counts), max(counts)
        worst = 50 / low**0.5
        span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        said.append(
            f"A test bucket has {span} questions; a single bucket’s accuracy can be off by {worst:.1f} points (one "
            "standard error, at worst)."
        )
    if report.graded is not None:
        if int(report.graded.tries.max()) < PAPER_TRIES:
            said.append(
                f"R stands on at most {int(report.graded.tries.max())} samples a fact where the paper has "
                f"{PAPER_TRIES}, so buckets are blurred."
            )
        edge = float(np.mean(report.graded.edge)) if report.graded.edge.size else 0.0
        if edge:
            said.append(
                f"{percent(edge)} % of the facts lie so near a bucket’s edge that another draw might move them."
            )
    if report.exposed is not None:
        said.append(
            "The lab’s world is synthetic and its model very small: it shows the method and whether the paper’s "
            "pattern can appear, not what a large model does. Its learning rate is its own; the paper’s has no "
            "effect at this size."
        )
    if report.restored_cells:
        said.append(
            "Many restored models are compared. The colours of a table are corrected for their number; the level "
            "chosen on dev with its test result (Table H) is the one that nothing was picked by."
        )
    if report.divergences:
        said.append(
            "The rank correlation takes trainings as independent points, although those of one bucket or size resemble "
            "each other: its interval is too narrow."
        )
    said.append(
        "An answer counts if the expected answer is contained in the output, so “not Mark Twain” counts for “Mark "
        "Twain”; the stricter readings stand in Table B."
        + ("" if report.ability else " Nothing here says what fine-tuning does to other abilities.")
    )
    return said


def _question_counts(report: Report) -> list[int]:
    model = report.models.get(BASE) or next(iter(report.models.values()), None)
    if model is None:
        return []
    scores = [model.score(split, b) for split in ("test", "testood") if model.score(split) for b in BUCKETS]
    return [score.count for score in scores if score and score.count]
