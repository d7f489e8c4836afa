"""Several runs on one page, each with its own report beside it: `sftknow report RUN1 RUN2 --out DIR`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sftknow.artifacts.files import write_json, write_text
from sftknow.artifacts.levels import by_share
from sftknow.errors import RunError
from sftknow.records import BUCKETS, ParameterChange
from sftknow.report import claims, facts_sheet, restoration
from sftknow.report.accuracy import accuracy_by_size
from sftknow.report.changes import level_statistics, shown_change
from sftknow.report.collect import collect
from sftknow.report.compose import FORMAT, content_of, render, write_files, write_pages
from sftknow.report.contents import BASE, SPLIT_TITLES, Missing, Model, Report
from sftknow.report.entries import accuracy_of, percent, share_entry, signed
from sftknow.report.findings import findings
from sftknow.report.layout import Block, Column, Entry, Field, Figure, Section, Table, tabulate
from sftknow.report.paper import Beside, distributions
from sftknow.report.words import hedge

Runs = Mapping[str, Report]
"""Runs by the name that they have on the page."""


def write_side_by_side(runs: Sequence[Path], out: Path) -> Path:
    """Write each run's own report into a folder of ``out`` and a page that sets them side by side; return its path.

    The page compares what the runs have in common; runs of one name are numbered.

    Raises:
        RunError: one of them is no run directory or damaged, the same one is given twice, or ``out`` is one of them.
    """
    places = [run.resolve() for run in runs]
    if len(set(places)) < len(places):
        raise RunError("a run is given twice; name each run once")
    if out.resolve() in places:
        raise RunError(f"{out} is one of the runs; give another folder with --out")
    named = _named([collect(run) for run in runs])
    for name in named:
        if (out / name).resolve() in places:
            raise RunError(f"the report of {name} would be written into the run itself; give another folder with --out")
    pages = {}
    for name, report in named.items():
        write_pages(report, out / name)
        pages[name] = f"{name}/report.html"
    sections = compose(named)
    write_files(out, sections)
    runs_results = {name: f"{name}/results.json" for name in named}
    write_json(out / "results.json", {"format": FORMAT, "runs": runs_results, **content_of(sections)})
    page = out / "report.html"
    missing = [Missing(what=f"{n}: {gap.what}", where=gap.where) for n, r in named.items() for gap in r.missing]
    content = render(
        name=" and ".join(named) if len(named) < 4 else f"{len(named)} runs",
        subtitle=" · ".join(f"{name}: {facts_sheet.subtitle(report)}" for name, report in named.items()),
        sentence=f"{len(named)} runs beside each other.",
        first=None,
        words=_words(named),
        advice=(),
        missing=missing,
        sections=sections,
        pages=pages,
    )
    write_text(page, content)
    return page


def _named(reports: Sequence[Report]) -> dict[str, Report]:
    named: dict[str, Report] = {}
    for report in reports:
        name, number = report.name, 2
        while name in named or name in ("tables", "figures"):
            name, number = f"{report.name}-{number}", number + 1
        named[name] = report
    return named


def compose(runs: Runs) -> list[Section]:
    """The sections of the page, without those that no run has anything for."""
    plan: list[tuple[str, str, str, list[Callable[[Runs], Block | None]]]] = [
        ("runs", "The runs", "What was run, and in what the recipes differ.", [overview, differences]),
        ("mastery", "What the base models know", "Shares of the mastery buckets.", [mastery]),
        (
            "accuracy",
            "What fine-tuning does to answers",
            "Runs on other facts or other base models answer other questions: compare the pattern, not the level.",
            [accuracy, by_size],
        ),
        ("parameters", "Which parameters changed, and restoring them", "", [concentration, restored]),
        ("claims", "Does it hold here?", "The paper’s claims in each run, with the same rules.", [verdicts]),
    ]
    sections = []
    for id, title, intro, makers in plan:
        blocks = tuple(block for make in makers if (block := make(runs)) is not None)
        if blocks:
            sections.append(Section(id=id, title=title, intro=intro, blocks=blocks))
    return sections


def _words(runs: Runs) -> list[str]:
    said = []
    for name, report in runs.items():
        best = findings(report).get("best_training")
        if best is None:
            said.append(f"{name}: no fine-tuned model is scored yet.")
            continue
        sentence = f"{name}: best trained on {best['title']}, {percent(best['test'])} % in-domain"
        gain = best.get("test_over_base")
        if gain:
            sentence += f", {signed(gain['value'])} points over its base{hedge(gain)}"
        said.append(f"{sentence}.")
    return said


@dataclass(frozen=True)
class Overview:
    """A run's line in the first table."""

    name: str
    report: Report
    found: Mapping[str, Any]
    """Its findings."""

    def best(self, key: str) -> Any:
        """Of the best training; None where none is scored."""
        return self.found.get("best_training", {}).get(key)

    @property
    def gain(self) -> float | None:
        """What the chosen level does in-domain."""
        value: float | None = self.found.get("restoration", {}).get("test", {}).get("value")
        return value


def overview(runs: Runs) -> Table | None:
    """One line a run."""

    def facts(line: Overview) -> int | None:
        return len(line.report.graded.fact_ids) if line.report.graded else None

    def base(line: Overview) -> Entry | None:
        found = line.found.get("base", {}).get("test")
        return share_entry(found["value"]) if found else None

    def accuracy(line: Overview) -> Entry | None:
        value = line.best("test")
        return None if value is None else share_entry(value)

    def gain(line: Overview) -> Entry | None:
        return None if line.gain is None else Entry(text=signed(line.gain), value=100 * line.gain)

    return tabulate(
        [Overview(name, report, findings(report)) for name, report in runs.items()],
        Field("Run", lambda line: line.name),
        Field("Base model", lambda line: line.report.base_name, absent="unknown"),
        Field(
            "Facts graded", lambda r: len(r.report.graded.fact_ids) if r.report.graded else None, absent="not graded"
        ),
        Field("Fine-tuned models", lambda line: len([n for n in line.report.models if n in line.report.cells])),
        Field("Base", base, unit="%", absent="not scored"),
        Field("Best training", lambda line: line.best("title"), absent="none scored"),
        Field("Its accuracy", accuracy, unit="%", absent="none scored"),
        Field(
            "Level restored",
            lambda line: line.found["restoration"]["level"] if line.gain is not None else None,
            absent="none",
        ),
        Field("Gain", gain, unit="points", absent="none"),
        id="runs-overview",
        title="The runs",
        note="In-domain means over buckets; “gain” is that of the chosen level on the in-domain test.",
    )


def differences(runs: Runs) -> Table | None:
    """Lines of the recipes that are not the same in all runs."""
    flat = {name: dict(facts_sheet.flatten(report.recipe or {})) for name, report in runs.items()}
    keys = dict.fromkeys(key for lines in flat.values() for key in lines)
    return tabulate(
        [key for key in keys if len({lines.get(key) for lines in flat.values()}) > 1],
        Field("Setting", str),
        *(Field(name, partial(_setting, lines), absent="not given") for name, lines in flat.items()),
        id="runs-recipes",
        title="In what the recipes differ",
        note="",
        words=True,
        folded=True,
    )


def _setting(lines: Mapping[str, str], key: str) -> str | None:
    return lines.get(key)


def mastery(runs: Runs) -> Table | None:
    """Table 8: shares of the buckets for each run, and for the paper's models among them."""
    lines = [(name, report.beside, report.graded.counts["test"]) for name, report in runs.items() if report.graded]

    def share(bucket: int, line: tuple[str, Beside, Mapping[int, int]]) -> Entry:
        _, beside, counts = line
        total = sum(counts.values())
        printed = distributions().get(beside.model or "", {}).get("test")
        theirs = 100 * printed[bucket] / sum(printed) if printed else None
        entry = share_entry(counts[bucket] / total) if total else Entry(text="no facts")
        return beside.entry(entry, theirs, number=1)

    return tabulate(
        lines,
        Field("Run", lambda line: line[0]),
        Field("Facts", lambda line: sum(line[2].values())),
        *(Field(f"Bucket {b}", partial(share, b), unit="%") for b in BUCKETS),
        id="table-8-mastery",
        title="Table 8 · Facts by mastery, in-domain test",
        note="Share of the facts in each bucket; the paper’s stands beside where the base model is one of its own.",
    )


def accuracy(runs: Runs) -> Table | None:
    """Table 2: in-domain and out-of-domain means for each training bucket at each run's largest size."""
    lines: list[tuple[str, str, int, Sequence[Model]]] = []
    for name, report in runs.items():
        if BASE in report.models:
            lines.append((name, "base model", 0, [report.models[BASE]]))
        here = [t for t in report.trainings if t.size == report.large_size and not t.all]
        lines += [(name, t.trained_on, t.size, t.models) for t in here]

    def shown(split: str, line: tuple[str, str, int, Sequence[Model]]) -> Entry:
        return accuracy_of(split, None, "acc", line[3])

    return tabulate(
        lines,
        Field("Run", lambda line: line[0]),
        Field("Trained on", lambda line: line[1]),
        Field("Facts", lambda line: line[2]),
        Field("Seeds", lambda line: len(line[3])),
        *(Field(SPLIT_TITLES[s].capitalize(), partial(shown, s), unit="%") for s in ("test", "testood")),
        id="table-2-accuracy",
        title="Table 2 · Accuracy at each run’s largest size",
        note="Mean over buckets. Behind ±: standard deviation over seeds, or standard error over questions where there "
        "is one.",
    )


def by_size(runs: Runs) -> Figure | None:
    """Figure 2 of each run, in-domain."""
    drawn = {name: figure for name, report in runs.items() if (figure := accuracy_by_size(report)) is not None}
    if not drawn:
        return None
    panels = [
        replace(panel, id=f"run-{place}-{panel.id}", title=name, alt=f"{name}. {panel.alt}")
        for place, (name, figure) in enumerate(drawn.items())
        for panel in figure.panels[:1]
    ]
    first = next(iter(drawn.values()))
    notes = {figure.note for figure in drawn.values()}
    return Figure(
        id="figure-2-accuracy",
        title="Figure 2 · Accuracy against training size, in-domain",
        note="Each panel has axes of its own. "
        + (first.note if len(notes) == 1 else " ".join(f"{name}: {figure.note}" for name, figure in drawn.items())),
        panels=tuple(panels),
        columns=("run", *first.columns),
        rows=tuple((name, *row) for name, figure in drawn.items() for row in figure.rows),
    )


def concentration(runs: Runs) -> Table | None:
    """Table 3 of the model that each run shows."""
    lines = [(n, cell, r.changes[cell]) for n, r in runs.items() if (cell := shown_change(r)) is not None]
    levels = by_share({s.level for *_, change in lines for s in change.levels})

    def shown(level: str, line: tuple[str, str, ParameterChange]) -> Entry | None:
        found = level_statistics(line[2], level)
        return share_entry(found.concentration) if found else None

    def changed(line: tuple[str, str, ParameterChange]) -> Entry:
        return share_entry(line[2].changed / line[2].elements if line[2].elements else 0.0)

    group = "Share of the change (%) in the top …"
    return tabulate(
        lines if levels else [],
        Field("Run", lambda line: line[0]),
        Field("Model", lambda line: line[1]),
        Field(
            "Changed at all",
            lambda ln: share_entry(ln[2].changed / ln[2].elements if ln[2].elements else 0.0),
            unit="%",
        ),
        *(Field(level, partial(shown, level), group=group, absent="not asked for") for level in levels),
        id="table-3-concentration",
        title="Table 3 · Concentration of change",
        note="Share of the summed relative change in the most changed elements, for one model of each run.",
    )


def restored(runs: Runs) -> Table | None:
    """The level chosen on dev in every run."""
    tables = {name: table for name, report in runs.items() if (table := restoration.every_choice(report))}
    if not tables:
        return None
    first = next(iter(tables.values()))
    return replace(
        first,
        title="Table O · The level chosen on dev",
        columns=(Column("Run"), *first.columns),
        rows=tuple((Entry(text=name), *row) for name, table in tables.items() for row in table.rows),
        folded=False,
    )


def verdicts(runs: Runs) -> Table | None:
    """The words for each claim and run."""
    judged = {name: {j.id: j for j in claims.judge(report)} for name, report in runs.items()}

    def shown(found: Mapping[str, claims.Judged], id: str) -> Entry | None:
        return claims.word_entry(found[id].verdict) if id in found else None

    return tabulate(
        claims.CLAIMS if any(judged.values()) else [],
        Field("Claim", lambda id: claims.CLAIMS[id][0]),
        *(Field(name, partial(shown, found), absent="nothing scored") for name, found in judged.items()),
        id="table-m-verdicts",
        title="Table M · The paper’s claims in each run",
        note="The tests and intervals behind the words stand in each run’s own report.",
        words=True,
    )
