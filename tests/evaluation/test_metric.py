"""The `evaluate` metric: loaded from its folder without a network, and equal to the harness on the same outputs."""

from __future__ import annotations

import doctest
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evaluate
import pytest
from hypothesis import given, settings, strategies as st

from sftknow.errors import FactsError
from sftknow.evaluation import metric as module
from sftknow.evaluation.metric import CbqaMastery, metric_folder, score_answers
from sftknow.evaluation.scoring import process_results

OUTPUTS = ["Nigeria.", " Paris", "not Mark Twain", "the capital is St. Petersburg", "Cafe\u0301", "", "Korea"]
ANSWERS = [
    ["Niger"],
    ["Paris", "City of Light"],
    ["Mark Twain"],
    ["St. Petersburg"],
    ["Café"],
    ["x"],
    ["South Korea", "Korea"],
]


@pytest.fixture(scope="module", autouse=True)
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`evaluate` copies what it loads into a cache, and imports it from there for the rest of the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="module")
def metric(tmp_path_factory: pytest.TempPathFactory, modules_cache: None) -> Any:
    return evaluate.load(str(metric_folder()), cache_dir=str(tmp_path_factory.mktemp("cache")))


def test_by_hand(metric: Any) -> None:
    assert metric.compute(predictions=OUTPUTS, references=ANSWERS) == {
        "acc": 6 / 7,
        "acc_word": 5 / 7,
        "exact_match": 3 / 7,
    }


def test_a_copied_folder_loads_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(metric_folder(), tmp_path / "cbqa_mastery")
    monkeypatch.chdir(tmp_path)
    for path in ("./cbqa_mastery", "cbqa_mastery/cbqa_mastery.py", str(Path(module.__file__))):
        loaded = evaluate.load(path, cache_dir=str(tmp_path / "cache"))
        assert loaded.compute(predictions=["Nigeria"], references=[["Niger"]])["acc"] == 1.0


answer = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(str.strip)


question = st.tuples(st.text("ab. 'é", max_size=8), st.lists(answer | st.sampled_from("ab"), min_size=1, max_size=3))


@settings(deadline=None)
@given(st.lists(question, min_size=1, max_size=12))
def test_equals_the_tasks_of_lm_eval(rows: list[tuple[str, list[str]]]) -> None:
    try:
        scored = [process_results({"placeholder": False, "answers": a}, [output]) for output, a in rows]
    except FactsError:  # an answer of invisible characters only
        with pytest.raises(FactsError, match=r"references\[\d+\]"):
            score_answers([output for output, _ in rows], [answers for _, answers in rows])
        return
    ours = score_answers([output for output, _ in rows], [answers for _, answers in rows])
    for name, value in ours.items():
        assert value == sum(row[name] for row in scored) / len(scored)


def test_in_batches(metric: Any) -> None:
    for output, answers in zip(OUTPUTS, ANSWERS, strict=True):
        metric.add(prediction=output, reference=answers)
    one_by_one = metric.compute()
    metric.add_batch(predictions=OUTPUTS[:3], references=ANSWERS[:3])
    metric.add_batch(predictions=OUTPUTS[3:], references=ANSWERS[3:])
    assert one_by_one == metric.compute() == metric.compute(predictions=OUTPUTS, references=ANSWERS)


def test_documents_itself(metric: Any) -> None:
    assert metric.features.keys() == {"predictions", "references"}
    assert "2509.16596" in metric.citation
    results = doctest.DocTestRunner().run(doctest.DocTestParser().get_doctest(module.INPUTS, {}, "inputs", None, None))
    assert results.attempted == 4
    assert results.failed == 0
    card = (metric_folder() / "README.md").read_text()
    assert card.startswith("---\ntitle:")
    for name in ("acc", "acc_word", "exact_match", "predictions", "references"):
        assert name in card


@pytest.mark.parametrize(
    ("predictions", "references", "said"),
    [
        (["a"], ["a"], r"references\[0\] is the text 'a'; give a list of answers, \['a'\]"),
        (["a", "b"], [["a"]], "2 predictions and 1 references"),
        ([], [], "nothing to score"),
        (["a", 7], [["a"], ["b"]], r"predictions\[1\] is 7"),
        (["a", "b"], [["a"], []], r"references\[1\]: .*without any answer"),
        (["a", "b"], [["a"], [" "]], r"references\[1\]: .*empty answer"),
        (["a"], [["a", None]], r"references\[0\] is \['a', None\]"),
        ("a", [["a"]], "predictions is 'a'"),
        (["a"], None, "references is None"),
    ],
)
def test_bad_input_is_one_line(predictions: Any, references: Any, said: str) -> None:
    with pytest.raises(FactsError, match=said) as caught:
        score_answers(predictions, references)
    assert "\n" not in str(caught.value)


def test_what_was_refused_leaves_nothing_behind(metric: Any) -> None:
    for predictions, references in ((["a"], ["a"]), (["a", "b"], [["a"]]), ([], []), (["a"], [[" "]]), (["a"], None)):
        with pytest.raises(FactsError):
            metric.compute(predictions=predictions, references=references)
    assert metric.compute(predictions=["a"], references=[["a"]])["acc"] == 1.0


def test_class_without_loading() -> None:
    assert CbqaMastery().compute(predictions=["Paris!"], references=[["paris"]]) == {
        "acc": 0.0,
        "acc_word": 0.0,
        "exact_match": 1.0,
    }
