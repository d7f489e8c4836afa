"""Tables say what the artifacts say, and hold no empty place."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sftknow.report import accuracy, changes, mastery, restoration
from sftknow.report.collect import collect
from sftknow.report.contents import Report
from sftknow.report.entries import signed
from sftknow.report.layout import Column, Entry, Table


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return collect(run)


def numbers(table: Table | None, row: str) -> list[object]:
    assert table is not None
    return [entry.value for entry in next(r for r in table.rows if r[0].text == row)[1:]]


def test_blank_entries_and_uneven_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="blank"):
        Entry(text=" ")
    with pytest.raises(ValueError, match="does not fit"):
        Table(id="t", title="T", note="", columns=(Column(title="A"),), rows=((Entry(text="1"), Entry(text="2")),))


def test_distribution_counts_the_parquet_files(run: Path, report: Report) -> None:
    counts = [pq.read_table(run / f"mastery/dataset/train/bucket_{b}.parquet").num_rows for b in range(5)]
    assert numbers(mastery.distribution(report), "training")[:6] == [*counts, sum(counts)]


def test_accuracy_is_worked_out_from_questions(run: Path, report: Report) -> None:
    questions = pq.read_table(run / "evaluation/base/questions.parquet").to_pandas()
    means = [
        100 * questions.query(f"split == '{split}' and bucket == {bucket}")["acc"].mean()
        for split in ("test", "testood")
        for bucket in range(5)
    ]
    means.insert(5, sum(means[:5]) / 5)
    means.append(sum(means[6:]) / 5)
    assert numbers(accuracy.accuracy(report), "nothing (base model)") == [1, *(pytest.approx(m) for m in means)]


def test_the_best_line_of_a_column_stands_out(report: Report) -> None:
    table = accuracy.accuracy(report)
    assert table is not None
    column = [row[7] for row in table.rows[1:]]  # in-domain mean, without the base
    values = [float(e.value or 0) for e in column]
    assert [e.strong for e in column] == [v == max(values) for v in values]
    assert not table.rows[0][8].strong


def test_restoration_is_signed_and_coloured_alike(report: Report) -> None:
    table = restoration.restoration(report, "test")
    assert table is not None
    column = [row[1] for row in table.rows]
    start = float(column[0].value or 0)
    for entry in column[1:]:
        moved = entry.extra["difference"]
        assert moved == pytest.approx(float(entry.value or 0) - start)
        sign = {"+": "up", "\N{MINUS SIGN}": "down", "±": ""}[entry.note[0]]
        assert entry.tone.partition("-")[0] == sign
        if entry.tone.endswith("weak"):
            assert abs(moved) <= 2 * entry.extra["its standard error"]
    assert {"up", "down"} <= {entry.tone.partition("-")[0] for entry in column}


def test_enrichment_is_share_over_share(report: Report) -> None:
    for kind in ("layer", "module"):
        change = report.changes["b0-n240-s0"]
        rows = changes.shares(change, kind)
        assert sum(part.share for part in rows) == pytest.approx(1)
        for stats in change.levels:
            assert sum(part.levels[stats.level][0] for part in rows) == pytest.approx(1)
            for part in rows:
                share = getattr(stats, f"by_{kind}")[part.name] / stats.selected
                assert part.levels[stats.level] == (pytest.approx(share), pytest.approx(share / part.share))


def test_unchanged_among_the_selected(report: Report) -> None:
    change = report.changes["b0-n60-s0"]
    last = change.levels[-1]
    assert last.selected_unchanged > 0
    found = numbers(changes.changed(report), "bucket 0, 60 facts, seed 0")
    assert found[-1] == pytest.approx(100 * last.selected_unchanged / last.selected)


def test_concentration_has_both_readings(report: Report) -> None:
    table = changes.concentration(report)
    assert table is not None
    mean = sum(report.changes[f"b0-n60-s{s}"].levels[1].concentration for s in (0, 1)) / 2
    assert [row[1].text for row in table.rows[:2]] == ["all", "base ≠ 0"]
    assert table.rows[0][3].value == pytest.approx(100 * mean)
    assert table.rows[1][3].value == pytest.approx(
        100 * report.changes["b0-n60-s0"].levels[1].concentration_nonzero_base
    )


def test_csv_keeps_the_unrounded_numbers(report: Report) -> None:
    table = accuracy.accuracy(report)
    assert table is not None
    lines = list(csv.reader(io.StringIO(table.csv())))
    assert len({len(line) for line in lines}) == 1
    assert all(place.strip() for line in lines for place in line)
    place = lines[0].index("In-domain test: Mean (%)")
    assert float(lines[1][place]) == table.rows[0][7].value
    kinds = ("paper", "paper's spread", "spread over seeds", "standard error")
    assert [lines[0][place + 1 + i] for i in range(4)] == [f"In-domain test: Mean (%), {kind}" for kind in kinds]


def test_markdown_has_a_cell_for_each_column(report: Report) -> None:
    table = mastery.distribution(report)
    assert table is not None
    lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(table.rows)
    assert {line.count("|") for line in lines} == {len(table.columns) + 1}


@pytest.mark.parametrize(
    ("share", "text"), [(0.083, "+8.3"), (-0.0004, "±0.0"), (-0.02, "\N{MINUS SIGN}2.0"), (0, "±0.0")]
)
def test_signs(share: float, text: str) -> None:
    assert signed(share) == text
