"""Ten numbers of a report worked out anew from the run's Parquet files, by other means than the report's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, t


def answers(run: Path, model: str, split: str = "test") -> pd.DataFrame:
    table = pd.read_parquet(run / "evaluation" / model / "questions.parquet")
    return table[table["split"] == split].set_index("fact_id").sort_index()


def mean(run: Path, model: str, split: str = "test") -> float:
    return float(answers(run, model, split).groupby("bucket")["acc"].mean().mean())


def cell(table: dict[str, Any], row: str, column: str, key: str = "value") -> float:
    """An entry by the beginning of its row and the heading of its column."""
    lines = [line for line in table["rows"] if line[0]["text"].startswith(row)]
    assert len(lines) == 1, (row, [line[0]["text"] for line in table["rows"]])
    return float(lines[0][table["columns"].index(column)][key])


def test_ten_numbers(rich: Path, rich_results: Any) -> None:
    tables = rich_results["tables"]
    seeds = (0, 1, 2)
    # 1, 2: facts of a bucket, and how many are near an edge
    graded = {b: pd.read_parquet(rich / f"mastery/dataset/test/bucket_{b}.parquet") for b in range(5)}
    assert cell(tables["table-1-distribution"], "in-domain test", "Bucket 3 (facts)") == len(graded[3])
    near = pd.concat(graded.values())["edge"].mean()
    assert cell(tables["table-1-distribution"], "in-domain test", "Near an edge (%)") == pytest.approx(100 * near)
    # 3, 4: a bucket's accuracy at the largest size, mean and spread over seeds
    parts = [answers(rich, f"b4-n1920-s{s}").query("bucket == 2")["acc"].mean() for s in seeds]
    two = tables["table-2-accuracy"]
    assert cell(two, "bucket 4", "In-domain test: Bucket 2 (%)") == pytest.approx(100 * np.mean(parts))
    assert cell(two, "bucket 4", "In-domain test: Bucket 2 (%)", "spread over seeds") == pytest.approx(
        100 * np.std(parts, ddof=1)
    )
    # 5: the out-of-domain mean
    outside = [mean(rich, f"b0-n1920-s{s}", "testood") for s in seeds]
    assert cell(two, "bucket 0", "Out-of-domain test: Mean (%)") == pytest.approx(100 * np.mean(outside))
    # 6: the difference that a level makes
    gains = [mean(rich, f"b0-n240-s{s}@20pct") - mean(rich, f"b0-n240-s{s}") for s in seeds]
    four = tables["table-4a-restoration-test"]
    column = "Trained on: bucket 0, 240 facts (%)"
    assert cell(four, "20%", column, "difference") == pytest.approx(100 * np.mean(gains))
    # 7: its standard error: questions paired, and seeds: restored and unrestored of one seed belong together
    shared = sum(answers(rich, f"b0-n240-s{s}@20pct")["acc"].astype(float) for s in seeds) / 3
    shared -= sum(answers(rich, f"b0-n240-s{s}")["acc"].astype(float) for s in seeds) / 3
    buckets = answers(rich, "base")["bucket"]
    within = sum(shared[buckets == b].var(ddof=1) / (buckets == b).sum() for b in range(5)) / 25
    between = np.var(gains, ddof=1) / 3
    sides = [[mean(rich, f"b0-n240-s{s}{level}") for s in seeds] for level in ("", "@20pct")]
    apart = sum(np.var(side, ddof=1) / 3 for side in sides)
    assert abs(apart - between) > 1e-5, "the two ways of counting seeds are told apart here"
    assert cell(four, "20%", column, "its standard error") == pytest.approx(100 * math.sqrt(within + between))
    # 8, 9: questions gained, and McNemar's test of all of them
    chosen = rich_results["findings"]["restoration"]
    before, after = answers(rich, "b0-n1920-s0")["acc"], answers(rich, "b0-n1920-s0@20pct")["acc"]
    assert chosen["level"] == "20%"
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    tested = tables["table-k-paired-tests"]
    line = next(r for r in tested["rows"] if r[0]["text"] == "restoring" and "20% restored" in r[2]["text"])
    assert (line[4]["value"], line[5]["value"]) == (gained, lost)
    assert line[6]["plain McNemar"] == pytest.approx(binomtest(gained, gained + lost).pvalue)
    # 10: R over the facts that the pretraining stated most often
    rates = pd.concat(pd.read_parquet(p) for p in (rich / "mastery/dataset").glob("*/bucket_*.parquet"))
    known = pd.read_parquet(rich / "facts/exposures.parquet").merge(rates, on="fact_id")
    often = known[(known["exposures"] >= 51) & (known["exposures"] <= 100)]["rate"].mean()
    assert cell(tables["table-a-exposure"], "51–100", "Mean R") == pytest.approx(often)


def test_the_intervals_of_a_verdict(rich: Path, rich_results: Any) -> None:
    """Phenomenon 2 and token finding 1: paired questions or facts, seeds by Welch, Student's t, Bonferroni."""
    seeds = (0, 1, 2)
    rows = {row[1]["text"]: row[2] for row in rich_results["tables"]["table-n-evidence"]["rows"]}
    sides = [[answers(rich, f"b{b}-n1920-s{s}") for s in seeds] for b in (0, 4)]
    means = [[side.groupby("bucket")["acc"].mean().mean() for side in group] for group in sides]
    shared = sum(s["acc"].astype(float) for s in sides[0]) / 3 - sum(s["acc"].astype(float) for s in sides[1]) / 3
    buckets = sides[0][0]["bucket"]
    within = sum(shared[buckets == b].var(ddof=1) / (buckets == b).sum() for b in range(5)) / 25
    low, high = interval(float(np.mean(means[0]) - np.mean(means[1])), within, means, tests=2)
    found = rows["bucket 0 against bucket 4"]
    assert (found["low"], found["high"]) == pytest.approx((100 * low, 100 * high), rel=2e-3)
    # Divergences: the facts of bucket 4 that both have, of which one is infinite.
    kls = []
    for size in (240, 60):
        files = [pd.read_parquet(rich / f"divergence/b0-n{size}-s{s}/examples.parquet") for s in seeds]
        kls.append([f[(f["bucket"] == 4) & np.isfinite(f["kl"])].set_index("fact_id")["kl"] for f in files])
    moved = sum(kls[0]) / 3 - sum(kls[1]) / 3
    saved = [[_divergence(rich, f"b0-n{size}-s{s}") for s in seeds] for size in (240, 60)]
    low, high = interval(float(np.mean(saved[0]) - np.mean(saved[1])), moved.var(ddof=1) / len(moved), saved, tests=6)
    found = rows["bucket 0, 60 to 240 facts"]
    assert (found["low"], found["high"]) == pytest.approx((low, high), rel=2e-3)


def interval(value: float, within: float, seeds: list[list[float]], *, tests: int) -> tuple[float, float]:
    parts = [np.var(values, ddof=1) / len(values) for values in seeds]
    variance = within + sum(parts)
    freedom = sum(parts) ** 2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, seeds, strict=True))
    half = t.ppf(1 - 0.05 / (2 * tests), freedom) * math.sqrt(variance)
    return value - half, value + half


def _divergence(run: Path, cell: str) -> float:
    return float(json.loads((run / "divergence" / cell / "divergence.json").read_text())["mean"])
