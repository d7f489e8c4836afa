"""Controls in the report: their numbers by hand, in grey in Table 4, in Table Q, in the findings and in a sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sftknow.artifacts.levels import CONTROLS, read_control
from sftknow.report.contents import Report
from sftknow.report.controls import controlled, controls, ranking_gains
from sftknow.report.findings import findings
from sftknow.report.restoration import restoration
from sftknow.report.summary import plain_words
from tests.report.simulated import Truth, simulated_report


@pytest.fixture(scope="module")
def report() -> Report:
    return simulated_report(Truth(seeds=2, restoring=0.15, ranking=0.1), 1)


def accuracy(report: Report, name: str) -> float:
    return report.models[name].scores["test", None, "acc"].value


def test_table_4_shows_them_in_grey(report: Report) -> None:
    table = restoration(report, "test")
    assert table is not None
    found = {row[0].text: row[1] for row in table.rows}
    assert table.columns[1].title == "bucket 0, 240 facts"
    for kind, words in CONTROLS.items():
        means = []
        for seed in (0, 1):
            names = [name for name in report.models if name.startswith(f"b0-n240-s{seed}@{kind}-")]
            assert len(names) == (3 if kind.startswith("random") else 1)
            means.append(np.mean([accuracy(report, name) for name in names]))
        assert found[words].value == pytest.approx(100 * np.mean(means))
        assert found[words].tone == "control"
        plain = np.mean([accuracy(report, f"b0-n240-s{seed}") for seed in (0, 1)])
        assert found[words].extra["difference"] == pytest.approx(100 * (np.mean(means) - plain))
    outside = restoration(report, "testood")
    assert outside is not None
    assert not {row[0].text for row in outside.rows} & set(CONTROLS.values()), "they are scored in-domain alone"


def test_table_q_and_the_mean_over_trainings(report: Report) -> None:
    lines, table = controlled(report), controls(report)
    assert table is not None
    assert len(table.rows) == len(lines) == 6
    beyond = [line.gain() - line.gain("blend-share") for line in lines]
    assert [row[10].value for row in table.rows] == pytest.approx([100 * value for value in beyond])
    assert table.columns[10].whole == f"The ranking beyond: {CONTROLS['blend-share']} (points)"
    mean = ranking_gains(lines)["blend-share"]
    assert (mean.value, mean.freedom, mean.draws) == (pytest.approx(np.mean(beyond)), 5, 6)
    assert mean.stderr > np.std(beyond, ddof=1) / 6**0.5, "questions are a sample, too"
    found: Any = findings(report)["controls"]
    assert found["beyond"]["blend-share"]["value"] == mean.value
    assert "the ranking gains more than each (Table Q)" in " ".join(plain_words({"controls": found}))


def test_of_one_model_the_draws_are_the_units() -> None:
    lines = controlled(simulated_report(Truth(seeds=1, restoring=0.15), 1))
    found = lines[0].against("random-share")
    assert found.freedom == 2, "three draws"
    assert lines[0].against("blend-share").freedom > 2


def test_a_run_without_controls_says_so() -> None:
    whole = simulated_report(Truth(restoring=0.1), 0)
    kept = {name: model for name, model in whole.models.items() if not read_control(name.partition("@")[2])}
    report = replace(whole, models=kept)
    assert controls(report) is None
    assert "controls" not in findings(report)
    table = restoration(report, "test")
    assert table is not None
    assert "In grey" not in table.note
