"""The report's arithmetic, against brute force and SciPy."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from sftknow.artifacts.scores import read_eval
from sftknow.report.aggregate import compare, estimate
from sftknow.report.collect import collect
from sftknow.report.contents import Exposed, Report
from sftknow.report.frame import Score, accuracies, score_frame
from sftknow.report.mastery import exposure_bins, wrong_bins
from sftknow.stats import spearman


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return collect(run)


def score(report: Report, model: str) -> Score:
    found = report.models[model].score("test")
    assert found is not None
    return found


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
def test_spearman_is_scipys(pairs: list[tuple[int, int]]) -> None:
    x, y = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    found = spearman(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found is None
        return
    assert found is not None
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert found.count == len(pairs)
    if found.low is not None and found.high is not None:
        assert -1 <= found.low <= found.rho <= found.high <= 1


def test_too_few_points() -> None:
    assert spearman([1, 2], [1, 2]) is None
    few = spearman([1, 2, 3, 4], [1, 3, 2, 4])
    assert few is not None
    assert few.low is None


def test_groups_are_in_grid_order(report: Report) -> None:
    assert [g.name for g in report.trainings] == ["b0-n60", "b0-n240", "b2-n60", "b2-n240"]
    assert report.trainings[1].phrase == "240 facts of bucket 0"


def test_mean_and_spread_over_seeds(report: Report) -> None:
    group = report.trainings[0]
    values = [score(report, c.name).value for c in group.cells]
    found = estimate(group.models, "test")
    assert found is not None
    assert found.value == pytest.approx(np.mean(values))
    assert found.error == pytest.approx(np.std(values, ddof=1))
    assert found.over_seeds
    single = estimate([report.models["base"]], "test")
    assert single is not None
    assert single.error == score(report, "base").stderr


def test_a_paired_difference_by_hand(report: Report) -> None:
    plain, restored = report.models["b0-n240-s0"], report.models["b0-n240-s0@20pct"]
    tables = [pq.read_table(m.questions.path).to_pandas().query("split == 'test'") for m in (restored, plain)]
    joined = tables[0].merge(tables[1], on="fact_id")
    joined["d"] = joined["acc_x"].astype(float) - joined["acc_y"].astype(float)
    by_bucket = joined.groupby("bucket_x")["d"]
    found = compare([restored], [plain], "test")
    assert found is not None
    assert found.value == pytest.approx(by_bucket.mean().mean())
    assert found.stderr == pytest.approx(math.sqrt((by_bucket.var(ddof=1) / by_bucket.count()).sum()) / 5)
    assert found.gained == int((joined["d"] > 0).sum())
    assert found.lost == int((joined["d"] < 0).sum())
    back = compare([plain], [restored], "test")
    assert back is not None
    assert (back.value, back.stderr) == (pytest.approx(-found.value), pytest.approx(found.stderr))
    one = compare([restored], [plain], "test", bucket=4)
    assert one is not None
    assert one.value == pytest.approx(by_bucket.mean()[4])
    assert one.stderr == pytest.approx(math.sqrt(by_bucket.var(ddof=1)[4] / by_bucket.count()[4]))


def test_a_model_against_itself_differs_by_nothing(report: Report) -> None:
    model = report.models["b2-n60-s0"]
    found = compare([model], [model], "test")
    assert found is not None
    assert (found.value, found.stderr, found.gained, found.lost, found.sure) == (0, 0, 0, 0, False)


def test_without_questions_the_errors_add(report: Report) -> None:
    first, second = report.models["b0-n60-s0"], report.models["b2-n60-s0"]
    found = compare([replace(first, questions=None)], [second], "test")
    assert found is not None
    errors = [score(report, m.name).stderr for m in (first, second)]
    assert found.stderr == pytest.approx(math.hypot(*errors))
    assert found.gained is None


def test_the_mean_of_leaves_stands_in_for_a_group_that_was_not_written(run: Path, report: Report) -> None:
    written = read_eval(run / "evaluation" / "base")
    leaves = tuple(m for m in written.metrics if m.task != "cbqa_mastery_test")
    frame = score_frame({"base": replace(written, metrics=leaves)}, {}, {}, {})
    alone = accuracies(frame)["base"]["test", None, "acc"]
    whole = score(report, "base")
    assert alone.value == pytest.approx(whole.value)
    assert alone.stderr == pytest.approx(whole.stderr)
    assert report.models["base"].score("train") is None


def test_bins_hold_every_fact_once(report: Report) -> None:
    assert report.exposed is not None
    assert sum(b.facts for b in exposure_bins(report.exposed)) == report.exposed.rate.size
    often = int((report.exposed.exposures >= 6).sum())
    assert sum(b.facts for b in wrong_bins(report.exposed)) == often


def test_bins_by_hand() -> None:
    exposed = Exposed(
        exposures=np.array([0.0, 0.0, 2.0, 500.0]),
        wrong_share=np.array([0, 0, 0.5, 0.25]),
        rate=np.array([0, 0.2, 0.5, 1]),
    )
    found = [(b.title, b.facts, b.mean, b.wrong_share) for b in exposure_bins(exposed)]
    assert found == [("0", 2, pytest.approx(0.1), 0.0), ("1–2", 1, 0.5, 0.5), ("> 100", 1, 1.0, 0.25)]
