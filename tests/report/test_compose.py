"""The page: whole, self-contained, escaped, the same every time, and in step with results.json."""

from __future__ import annotations

import html
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sftknow.errors import RunError
from sftknow.report.compose import write_report
from tests.report.synthetic import synthetic_run


def text_of(fragment: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", fragment)).split())


def body_cells(page: Path) -> list[str]:
    bodies = re.findall(r"<tbody>(.*?)</tbody>", page.read_text(), flags=re.DOTALL)
    return [text_of(cell) for body in bodies for cell in re.findall(r"<t[dh]\b.*?</t[dh]>", body, flags=re.DOTALL)]


def test_every_table_and_figure_is_there(page: Path, results: Any) -> None:
    wanted = ("table-1", "table-2", "table-3", "table-4a", "table-4b", "table-9", "table-10", "table-h")
    assert all(any(name.startswith(f"{prefix}-") for name in results["tables"]) for prefix in wanted)
    assert {"figure-2-accuracy", "figure-4-5-divergence", "figure-b-exposure", "figure-e-restoration"} <= set(
        results["figures"]
    )
    for name in results["tables"]:
        assert (page.parent / "tables" / f"{name}.csv").stat().st_size
        assert (page.parent / "tables" / f"{name}.md").stat().st_size
    for name, figure in results["figures"].items():
        assert (page.parent / "figures" / f"{name}.csv").stat().st_size
        for panel, alt in figure["alt"].items():
            assert len(alt) > 40
            assert (page.parent / "figures" / f"{panel}.png").read_bytes().startswith(b"\x89PNG")
            assert ET.parse(page.parent / "figures" / f"{panel}.svg").getroot().tag.endswith("svg")
    assert results["missing"] == []
    assert 'id="missing"' not in page.read_text()


def test_no_cell_is_empty_and_every_number_is_in_the_results(page: Path, results: Any) -> None:
    cells = body_cells(page)
    assert len(cells) > 500
    assert all(cells)
    known = {" ".join(e["text"].split()) for t in results["tables"].values() for row in t["rows"] for e in row}
    assert set(cells) <= known
    for words in results["plain_words"] + results["limits"]:
        assert words in html.unescape(page.read_text())


def test_the_page_needs_nothing_from_outside(page: Path) -> None:
    content = page.read_text()
    assert "<script" not in content
    loaded = re.findall(r'(?:src|href)="([^"#][^"]*)"', content)
    assert loaded
    assert all(address.startswith("data:") for address in loaded)
    assert not re.search(r"@import|url\((?!#)", content)
    assert "prefers-color-scheme: dark" in content
    assert 'name="viewport"' in content


def test_ids_are_unique_and_references_lead_somewhere(page: Path) -> None:
    content = page.read_text()
    ids = Counter(re.findall(r'\bid="([^"]+)"', content))
    assert [name for name, count in ids.items() if count > 1] == []
    references = set(re.findall(r'href="#([^"]+)"', content)) | set(re.findall(r"url\(#([^)]+)\)", content))
    assert references
    assert references <= set(ids)


def test_names_are_escaped(page: Path) -> None:
    assert "lab &lt;model&gt;" in page.read_text()
    assert "<model>" not in page.read_text()


def test_drawings_take_the_pages_colours(page: Path) -> None:
    svgs = re.findall(r"<svg\b.*?</svg>", page.read_text(), flags=re.DOTALL)
    assert svgs
    for svg in svgs:
        assert "var(--ink)" in svg
        assert "#1f2328" not in svg
        assert "<title>" not in svg
        ET.fromstring(svg)


def test_the_same_run_gives_the_same_bytes(run: Path, page: Path, tmp_path: Path) -> None:
    again = write_report(run, tmp_path)
    first = {p.relative_to(page.parent): p.read_bytes() for p in page.parent.rglob("*") if p.is_file()}
    second = {p.relative_to(tmp_path): p.read_bytes() for p in again.parent.rglob("*") if p.is_file()}
    assert first == second


def test_a_run_cut_off_after_grading(run: Path, tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    shutil.copytree(run / "mastery", partial / "mastery")
    shutil.copy(run / "recipe.yaml", partial)
    page = write_report(partial, partial / "report")
    results = json.loads((page.parent / "results.json").read_text())
    assert "table-1-distribution" in results["tables"]
    assert "table-2-accuracy" not in results["tables"]
    assert "the accuracy of fine-tuned models" in {gap["what"] for gap in results["missing"]}
    assert "Missing from this run" in page.read_text()
    assert all(body_cells(page))


def test_a_single_cell_without_restoration_or_dev(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "small", buckets=(3,), sizes=(60,), restored=(), per_bucket=5, splits=("test",))
    page = write_report(run, run / "report")
    results = json.loads((page.parent / "results.json").read_text())
    assert "The one training" in results["plain_words"][1]
    assert not any(name.startswith("table-4") for name in results["tables"])
    assert all(body_cells(page))


def test_a_single_question_a_bucket_has_no_standard_error(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "tiny", buckets=(0, 2), sizes=(60,), per_bucket=1, splits=("test",))
    page = write_report(run, run / "report")
    results = json.loads((page.parent / "results.json").read_text())
    assert any("± unknown" in sentence for sentence in results["plain_words"])
    assert "too few seeds to say" in " ".join(results["plain_words"])
    assert all(body_cells(page))


def test_a_second_report_replaces_the_first(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "mastery", tmp_path / "mastery")
    out = tmp_path / "report"
    write_report(run, out)
    before = {file.name for file in out.rglob("*.csv")}
    for kind in ("tables", "figures"):
        (out / kind / "my-own.csv").write_text("years of work")
    write_report(tmp_path, out)
    assert (out / "figures" / "figure-a-distribution.svg").exists()
    shown = json.loads((out / "results.json").read_text())
    left = {file.name for file in out.rglob("*.csv")}
    assert left < before | {"my-own.csv"}, "tables of the first report that the second has not are gone"
    assert {name.removesuffix(".csv") for name in left} == {*shown["tables"], *shown["figures"], "my-own"}
    assert len(list(out.rglob("my-own.csv"))) == 2


def test_no_page_for_a_damaged_run(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "choice.json").write_text("{")
    with pytest.raises(RunError, match=r"choice\.json"):
        write_report(copy, tmp_path / "out")
    assert not (tmp_path / "out" / "report.html").exists()
