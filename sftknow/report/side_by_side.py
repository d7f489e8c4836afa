"""Several runs on one page, each with its own report beside it: `sftknow report RUN1 RUN2 --out DIR`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftknow.artifacts.files import write_json, write_text
from sftknow.artifacts.levels import level_share
from sftknow.errors import RunError
from sftknow.records import BUCKETS
from sftknow.report import claims, facts_sheet, figures, restoration_tables
from sftknow.report.aggregate import SPLIT_TITLES, estimate, group_models, group_task, groups, large_size
from sftknow.report.collect import collect
from sftknow.report.compose import FORMAT, render, write_files, write_pages
from sftknow.report.contents import BASE, Missing, Report
from sftknow.report.entries import estimate_entry, percent, share_entry, signed, whole, words
from sftknow.report.findings import findings
from sftknow.report.layout import Column, Entry, Figure, Section, Table, figure_json, table_json
from sftknow.report.paper import distributions
from sftknow.report.parameter_tables import shown_change

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
    blocks = [block for section in sections for block in section.blocks]
    results: dict[str, Any] = {
        "format": FORMAT,
        "runs": {name: f"{name}/results.json" for name in named},
        "tables": {b.id: table_json(b) for b in blocks if isinstance(b, Table)},
        "figures": {b.id: figure_json(b) for b in blocks if isinstance(b, Figure)},
    }
    write_json(out / "results.json", results)
    page = out / "report.html"
    missing = [Missing(what=f"{n}: {gap.what}", where=gap.where) for n, r in named.items() for gap in r.missing]
    content = render(
        name=" and ".join(named) if len(named) < 4 else f"{len(named)} runs",
        subtitle=" · ".join(f"{name}: {facts_sheet.subtitle(report)}" for name, report in named.items()),
        tiles=(),
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
    plan: list[tuple[str, str, str, list[Callable[[Runs], Table | Figure | None]]]] = [
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
            sentence += f", {signed(gain['value'])} points over its base"
        said.append(f"{sentence}.")
    return said


def overview(runs: Runs) -> Table | None:
    """One line a run."""
    rows = []
    for name, report in runs.items():
        found = findings(report)
        best, restoration = found.get("best_training"), found.get("restoration", {})
        base = found.get("base", {}).get("test")
        change = restoration.get("test")
        rows.append(
            (
                words(name),
                words(report.base_name or "unknown"),
                whole(len(report.graded.fact_ids)) if report.graded else words("not graded"),
                whole(len([n for n in report.models if n in report.cells])),
                share_entry(base["value"]) if base else words("not scored"),
                words(best["title"]) if best else words("none scored"),
                share_entry(best["test"]) if best else words("none scored"),
                words(restoration["level"]) if change else words("none"),
                Entry(text=signed(change["value"]), value=100 * change["value"]) if change else words("none"),
            )
        )
    return Table(
        id="runs-overview",
        title="The runs",
        note="In-domain means over buckets; “gain” is that of the chosen level on the in-domain test.",
        columns=(
            Column(title="Run"),
            Column(title="Base model"),
            Column(title="Facts graded"),
            Column(title="Fine-tuned models"),
            Column(title="Base", unit="%"),
            Column(title="Best training"),
            Column(title="Its accuracy", unit="%"),
            Column(title="Level restored"),
            Column(title="Gain", unit="points"),
        ),
        rows=tuple(rows),
    )


def differences(runs: Runs) -> Table | None:
    """Lines of the recipes that are not the same in all runs."""
    flat = {name: dict(facts_sheet.flatten(report.recipe or {})) for name, report in runs.items()}
    keys = list(dict.fromkeys(key for lines in flat.values() for key in lines))
    rows = [
        (words(key), *(words(lines.get(key, "not given")) for lines in flat.values()))
        for key in keys
        if len({lines.get(key) for lines in flat.values()}) > 1
    ]
    if not rows:
        return None
    return Table(
        id="runs-recipes",
        title="In what the recipes differ",
        note="",
        columns=(Column(title="Setting"), *(Column(title=name) for name in flat)),
        rows=tuple(rows),
        words=True,
        folded=True,
    )


def mastery(runs: Runs) -> Table | None:
    """Table 8: shares of the buckets for each run, and for the paper's models among them."""
    rows = []
    for name, report in runs.items():
        if report.graded is None:
            continue
        counts = report.graded.counts["test"]
        total = sum(counts.values())
        printed = distributions().get(report.beside.model or "", {}).get("test")
        entries = []
        for bucket in BUCKETS:
            entry = share_entry(counts[bucket] / total) if total else words("no facts")
            theirs = 100 * printed[bucket] / sum(printed) if printed else None
            entries.append(report.beside.entry(entry, theirs, number=1))
        rows.append((words(name), whole(total), *entries))
    if not rows:
        return None
    return Table(
        id="table-8-mastery",
        title="Table 8 · Facts by mastery, in-domain test",
        note="Share of the facts in each bucket; the paper’s stands beside where the base model is one of its own.",
        columns=(
            Column(title="Run"),
            Column(title="Facts"),
            *(Column(title=f"Bucket {b}", unit="%") for b in BUCKETS),
        ),
        rows=tuple(rows),
    )


def accuracy(runs: Runs) -> Table | None:
    """Table 2: in-domain and out-of-domain means for each training bucket at each run's largest size."""
    rows = []
    for name, report in runs.items():
        size = large_size(report)
        here = [g for g in groups(report) if g.size == size and not g.all]
        lines = [("base model", 0, [report.models[BASE]])] if BASE in report.models else []
        lines += [(g.trained_on, g.size, group_models(report, g)) for g in here]
        for source, facts, models in lines:
            entries = [estimate_entry(estimate(models, group_task(s))) for s in ("test", "testood")]
            rows.append((words(name), words(source), whole(facts), whole(len(models)), *entries))
    if not rows:
        return None
    return Table(
        id="table-2-accuracy",
        title="Table 2 · Accuracy at each run’s largest size",
        note="Mean over buckets. Behind ±: standard deviation over seeds, or standard error over questions where there "
        "is one.",
        columns=(
            Column(title="Run"),
            Column(title="Trained on"),
            Column(title="Facts"),
            Column(title="Seeds"),
            *(Column(title=SPLIT_TITLES[s].capitalize(), unit="%") for s in ("test", "testood")),
        ),
        rows=tuple(rows),
    )


def by_size(runs: Runs) -> Figure | None:
    """Figure 2 of each run, in-domain."""
    drawn = {name: figure for name, report in runs.items() if (figure := figures.accuracy_by_size(report)) is not None}
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
    shown = {n: r.changes[cell] for n, r in runs.items() if (cell := shown_change(r)) is not None}
    levels = sorted({s.level for change in shown.values() for s in change.levels}, key=level_share)
    if not levels:
        return None
    rows = []
    for name, change in shown.items():
        found = {s.level: s for s in change.levels}
        part = change.changed / change.elements if change.elements else 0.0
        entries = [share_entry(found[k].concentration) if k in found else words("not asked for") for k in levels]
        rows.append((words(name), words(shown_change(runs[name]) or "none"), share_entry(part), *entries))
    return Table(
        id="table-3-concentration",
        title="Table 3 · Concentration of change",
        note="Share of the summed relative change in the most changed elements, for one model of each run.",
        columns=(
            Column(title="Run"),
            Column(title="Model"),
            Column(title="Changed at all", unit="%"),
            *(Column(title=level, group="Share of the change (%) in the top …") for level in levels),
        ),
        rows=tuple(rows),
    )


def restored(runs: Runs) -> Table | None:
    """The level chosen on dev in every run."""
    tables = {name: table for name, report in runs.items() if (table := restoration_tables.every_choice(report))}
    if not tables:
        return None
    first = next(iter(tables.values()))
    return Table(
        id="table-o-choices",
        title="Table O · The level chosen on dev",
        note=first.note,
        columns=(Column(title="Run"), *first.columns),
        rows=tuple((words(name), *row) for name, table in tables.items() for row in table.rows),
    )


def verdicts(runs: Runs) -> Table | None:
    """The words for each claim and run."""
    judged = {name: {j.id: j for j in claims.judge(report)} for name, report in runs.items()}
    if not any(judged.values()):
        return None
    rows = []
    for id, title in claims.TITLES.items():
        entries = []
        for found in judged.values():
            verdict = found[id].verdict if id in found else None
            entries.append(claims.word_entry(verdict) if verdict else words("nothing scored"))
        rows.append((words(title), *entries))
    return Table(
        id="table-m-verdicts",
        title="Table M · The paper’s claims in each run",
        note="The tests and intervals behind the words stand in each run’s own report.",
        columns=(Column(title="Claim"), *(Column(title=name) for name in runs)),
        rows=tuple(rows),
        words=True,
    )
