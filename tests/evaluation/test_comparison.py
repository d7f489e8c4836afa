"""Two evaluations side by side: pairing, the numbers, what is refused, the files."""

from __future__ import annotations

import csv
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from sftknow.artifacts.comparisons import read_comparison, write_comparison
from sftknow.artifacts.scores import METRICS
from sftknow.errors import MasteryDataError, RunError
from sftknow.evaluation.comparison import compare
from sftknow.records import EvalRun, Fact, QuestionResult, Split


def evaluation(model: str, right: dict[tuple[Split, int], str], *, fingerprint: str = "f" * 64) -> EvalRun:
    """``right`` has a character a question: ``1`` correct in every sense, ``w`` but not exactly, ``0`` wrong."""
    questions = [
        QuestionResult(
            fact_id=f"{split}/{bucket}/{place}",
            split=split,
            bucket=bucket,
            output=f"{model} says {mark}",
            acc=mark in "1w",
            acc_word=mark in "1w",
            exact_match=mark == "1",
        )
        for (split, bucket), marks in right.items()
        for place, mark in enumerate(marks)
    ]
    return EvalRun(model=model, dataset_fingerprint=fingerprint, graded_by="g", metrics=(), questions=tuple(questions))


A = evaluation("a", {("test", 0): "0000", ("test", 1): "1100110000", ("test", 4): "1w1111", ("testood", 2): "10"})
B = evaluation("b", {("test", 0): "0000", ("test", 1): "0111111100", ("test", 4): "11w110", ("testood", 2): "10"})


def test_numbers_by_hand() -> None:
    found = compare(A, B, resamples=2000)
    bucket = found.value("cbqa_mastery_test_bucket_1")
    assert (bucket.count, bucket.gained, bucket.lost) == (10, 4, 1)
    assert (bucket.a, bucket.b) == (0.4, 0.7)
    assert bucket.difference == pytest.approx(0.3)
    assert bucket.p_value == pytest.approx(binomtest(4, 5).pvalue)
    assert bucket.low < 0.3 < bucket.high
    exact = found.value("cbqa_mastery_test_bucket_4", "exact_match")
    assert (exact.gained, exact.lost) == (1, 2)
    assert exact.difference == pytest.approx(-1 / 6)
    mean = found.value("cbqa_mastery_test")
    assert mean.a == pytest.approx(statistics.mean([0, 0.4, 1]))
    assert mean.b == pytest.approx(statistics.mean([0, 0.7, 5 / 6]))
    assert mean.difference == pytest.approx(mean.b - mean.a)
    assert (mean.count, mean.gained, mean.lost) == (20, 4, 2)
    assert found.missing == tuple(
        f"cbqa_mastery_{split}_bucket_{bucket}"
        for split, empty in (("test", (2, 3)), ("testood", (0, 1, 3, 4)))
        for bucket in empty
    )
    assert found.splits == ("test", "testood")


def test_no_difference_at_all() -> None:
    found = compare(A, replace(A, model="again"))
    for entry in found.differences:
        assert (entry.difference, entry.low, entry.high, entry.gained, entry.lost) == (0, 0, 0, 0, 0)
        assert entry.p_value == 1.0


def test_ties_balance_out() -> None:
    one = evaluation("one", {("test", 3): "1010", ("test", 4): "110"})
    two = evaluation("two", {("test", 3): "0101", ("test", 4): "011"})
    mean = compare(one, two).value("cbqa_mastery_test")
    assert mean.difference == 0.0, "not a rounding error"
    assert mean.p_value == 1.0
    assert mean.low == pytest.approx(-mean.high, abs=0.06)
    assert (mean.gained, mean.lost) == (3, 3)


def test_swapping_turns_the_signs() -> None:
    there, back = compare(A, B), compare(B, A)
    for entry in there.differences:
        other = back.value(entry.task, entry.metric)
        assert entry.difference == -other.difference
        assert (entry.gained, entry.lost, entry.p_value) == (other.lost, other.gained, other.p_value)


def test_order_of_questions_and_seed() -> None:
    shuffled = replace(B, questions=tuple(reversed(B.questions)))
    assert compare(A, shuffled).differences == compare(A, B).differences
    assert compare(A, B, seed=1).differences != compare(A, B).differences
    assert [q.a.fact_id for q in compare(A, shuffled).questions] == [
        q.b.fact_id for q in compare(A, shuffled).questions
    ]


def refused(one: EvalRun, two: EvalRun, **more: object) -> str:
    with pytest.raises(MasteryDataError) as caught:
        compare(one, two, **more)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_questions_are_refused() -> None:
    assert "different graded data sets" in refused(A, replace(B, dataset_fingerprint="e" * 64))
    without = evaluation("b", {("test", 0): "0000", ("test", 1): "0111111100"})
    line = refused(A, without)
    assert "in bucket 4 of test 6 were put to a alone and 0 to b alone" in line
    shorter = evaluation("b", {("test", 0): "000", ("test", 1): "0111111100", ("test", 4): "111111"})
    assert "in bucket 0 of test 1 were put to a alone" in refused(A, shorter)
    assert "no split in common" in refused(A, evaluation("b", {("dev", 0): "1"}))
    assert "no split in common" in refused(evaluation("a", {}), evaluation("b", {}))
    twice = replace(B, questions=(*B.questions, B.questions[0]))
    assert "asked 1 questions of test twice" in refused(A, twice)
    assert "cannot be compared on dev: neither model was scored on it" in refused(A, B, splits=("dev",))


def test_splits_of_one_only_are_named() -> None:
    more = replace(A, questions=(*A.questions, *evaluation("a", {("dev", 1): "11", ("train", 1): "10"}).questions))
    other = replace(B, questions=(*B.questions, *evaluation("b", {("train", 2): "1"}).questions))
    found = compare(more, other)
    assert found.splits == ("test", "testood")
    assert found.left_out == {"dev": "only a was scored on it", "train": "the models were trained on different facts"}
    assert compare(more, other, splits=("test",)).left_out == {}
    assert "trained on different facts" in refused(more, other, splits=("train",))
    same = replace(B, questions=(*B.questions, *evaluation("b", {("train", 1): "01"}).questions))
    assert compare(more, same).splits == ("train", "test", "testood")


def test_files(tmp_path: Path) -> None:
    fact = Fact(id="test/1/0", topic="P1", subject="s", object="o", aliases=("p",), question="q?", split="test")
    found = compare(A, B, facts={("test", "test/1/0"): fact}, resamples=100)
    write_comparison(tmp_path / "out", found)
    assert read_comparison(tmp_path / "out") == found
    with (tmp_path / "out" / "changed.csv").open() as file:
        changed = list(csv.DictReader(file))
    assert len(changed) == sum(any(q.change(m) != "same" for m in METRICS) for q in found.questions) == 8
    assert changed[0] == {
        "fact_id": "test/1/0", "split": "test", "bucket": "1", "question": "q?", "answers": "o | p",
        "output_a": "a says 1", "output_b": "b says 0", "acc_a": "True", "acc_b": "False", "acc_word_a": "True",
        "acc_word_b": "False", "exact_match_a": "True", "exact_match_b": "False", "change_acc": "lost",
        "change_acc_word": "lost", "change_exact_match": "lost",
    }  # fmt: skip
    with (tmp_path / "out" / "differences.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.differences) == 3 * (1 + 3 + 1 + 1)
    assert math.isclose(float(rows[0]["difference"]), found.differences[0].difference)
    assert pq.read_table(tmp_path / "out" / "questions.parquet").num_rows == 22
    (tmp_path / "out" / "questions.parquet").unlink()
    with pytest.raises(RunError, match="no whole comparison"):
        read_comparison(tmp_path / "out")
