"""Tables of token divergence say what the artifacts say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sftknow.artifacts.files import read_json
from sftknow.errors import RunError
from sftknow.records import TokenDivergence
from sftknow.report import divergence
from sftknow.report.by_fact import SHOWN, moved_most
from sftknow.report.collect import collect
from sftknow.report.contents import Report


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return collect(run)


def test_every_model_has_its_line(run: Path, report: Report) -> None:
    table = divergence.divergence(report)
    assert table is not None
    assert len(table.rows) == len(report.divergences) > 2
    first = next(iter(sorted(report.divergences, key=report.order)))
    written = TokenDivergence.from_json(**read_json(run / "divergence" / first / "divergence.json"))
    assert table.rows[0][1].value == written.mean
    assert table.rows[0][1].extra == {"low": written.low, "high": written.high}


def test_buckets_and_topics(report: Report) -> None:
    buckets = divergence.groups(report, "bucket")
    assert buckets is not None
    assert len(buckets.rows) == 2 * len(report.divergences)
    assert {row[1].text for row in buckets.rows} == {"bucket 2", "bucket 4"}
    assert [row[5].value for row in buckets.rows[:2]] == [9, 31]
    topics = divergence.groups(report, "topic")
    assert topics is not None
    assert [row[1].text for row in topics.rows] == ["P36", "P36"]
    least, most = (row[2].value for row in topics.rows)
    means = [d.mean for d in report.divergences.values()]
    assert (least, most) == (min(means), max(means))


def test_the_facts_that_moved_most_in_words(run: Path, report: Report) -> None:
    table = divergence.moved_most(report)
    assert table is not None
    assert len(table.rows) == 2 * SHOWN
    kls = [row[-1].value for row in table.rows[:SHOWN]]
    # The eleven finite ones of bucket 4 are 0 … 10: the last comes first; infinite ones and other buckets stay out.
    assert kls == sorted(kls, reverse=True)
    assert table.rows[0][1].text == "The capital of Land 10 is"
    assert table.rows[0][3].text == "“ Town” → '\\n'"
    assert table.rows[0][4].text == "“ Town”: 1 → 11"
    assert table.rows[0][4].extra == {"before": 1, "after": 11}
    assert all(example.kl < 99 for found in report.moved.values() for example in found)


def test_a_run_without_examples_or_divergence(tmp_path: Path, report: Report) -> None:
    assert moved_most(tmp_path, 4) == ()
    (tmp_path / "examples.parquet").write_bytes(b"no Parquet")
    with pytest.raises(RunError, match=r"examples\.parquet cannot be read"):
        moved_most(tmp_path, 4)


def test_both_prompts_are_shown_and_named(run: Path, report: Report, tmp_path: Path) -> None:
    table = divergence.divergence(report)
    assert table is not None
    said = (
        "The base is shown each topic’s statement that the base completes best, the fine-tuned model the question in "
        "the prompt of fine-tuning; counted are facts whose answer starts within the first 3 tokens"
    )
    assert said in table.note
    at = [column.title for column in table.columns].index("shown the statement")
    name = sorted(report.divergences, key=report.order)[0]
    beside = report.divergences[name].beside
    assert beside is not None
    assert (table.rows[0][at].value, table.rows[0][at].extra) == (beside.mean, {"low": beside.low, "high": beside.high})
    figure = divergence.divergence_by_size(report)
    assert figure is not None
    assert said in figure.note
    assert "With the fine-tuned model shown the statement instead: " in figure.note
    assert {row[0] for row in figure.rows} >= {"divergence (nats)", "divergence (nats), shown the statement"}
    assert "figure-5-beside" in [panel.id for panel in figure.panels]


def test_a_run_from_before_the_second_prompt_is_still_told(run: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(run, old)
    for path in old.glob("divergence/*/divergence.json"):
        content = read_json(path)
        del content["beside"]
        path.write_text(json.dumps({**content, "tuned_prompt": "statement", "bucket": 3}))
    report = collect(old)
    table, figure = divergence.divergence(report), divergence.divergence_by_size(report)
    assert table is not None
    assert figure is not None
    assert not [column for column in table.columns if column.title.startswith("shown")]
    assert "on test facts of bucket 3" in table.note
    assert "the fine-tuned model each topic’s statement" in table.note
    assert "instead" not in figure.note
    assert [panel.id for panel in figure.panels][:2] == ["figure-4-bucket-3", "figure-5-divergence"]
