"""Accuracy of closed-book answers as an `evaluate.Metric`: the same numbers as the cbqa_mastery tasks of lm-eval.

`evaluate.load(str(metric_folder()))` loads it, offline; the folder's README.md is its card.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate

from sftknow.errors import FactsError
from sftknow.evaluation.scoring import READINGS

DESCRIPTION = """\
Accuracy of closed-book question answering in three readings: acc (the output contains the answer or a synonym; the \
measure of arXiv 2509.16596), acc_word (as whole words) and exact_match (the output is the answer)."""

INPUTS = """\
Args:
    predictions (list[str]): one model output a question.
    references (list[list[str]]): for each question everything that counts as correct, at least one answer.
Returns:
    acc (float): share of outputs that contain an answer, between 0 and 1.
    acc_word (float): share of outputs that contain an answer as whole words.
    exact_match (float): share of outputs that are an answer, after SQuAD's normalisation.
Examples:
    >>> import evaluate
    >>> from sftknow.evaluation.metric import metric_folder
    >>> metric = evaluate.load(str(metric_folder()))
    >>> metric.compute(predictions=["Nigeria.", "Paris"], references=[["Niger"], ["Paris", "City of Light"]])
    {'acc': 1.0, 'acc_word': 0.5, 'exact_match': 0.5}
"""

CITATION = """\
@inproceedings{ye-etal-2025-analyzing,
  title = {Analyzing the Effects of Supervised Fine-Tuning on Model Knowledge from Token and Parameter Levels},
  author = {Ye, Junjie and Yang, Yuming and Nan, Yang and Li, Shuo and Zhang, Qi and Gui, Tao and Huang, Xuanjing and
            Wang, Peng and Shi, Zhongchao and Fan, Jianping},
  booktitle = {Proceedings of EMNLP},
  year = {2025},
  note = {arXiv:2509.16596}
}
"""


def metric_folder() -> Path:
    """The folder to give to `evaluate.load`."""
    return Path(__file__).with_name("cbqa_mastery")


def score_answers(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Shares of correct outputs, between 0 and 1: ``acc``, ``acc_word``, ``exact_match``.

    Args:
        predictions: one output a question.
        references: as many lists of accepted answers.

    Raises:
        FactsError: no question, lists of unequal length, something else than texts, or a question without a usable
            answer; the message says which.
    """
    check_inputs(predictions, references)
    scores = dict.fromkeys(READINGS, 0)
    for number, (output, answers) in enumerate(zip(predictions, references, strict=True)):
        try:
            for name, correct in READINGS.items():
                scores[name] += correct(output, answers)
        except FactsError as error:
            raise FactsError(f"references[{number}]: {error}") from None
    return {name: correct / len(predictions) for name, correct in scores.items()}


def check_inputs(predictions: Any, references: Any) -> None:
    """Raise FactsError, in one line, for what cannot be scored."""
    for name, values in (("predictions", predictions), ("references", references)):
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise FactsError(f"{name} is {_said(values)}; give a list with one entry a question")
    if len(predictions) != len(references):
        raise FactsError(
            f"there are {len(predictions)} predictions and {len(references)} references; give one of each a question"
        )
    if not predictions:
        raise FactsError("there is nothing to score: predictions and references are empty")
    for number, output in enumerate(predictions):
        if not isinstance(output, str):
            raise FactsError(f"predictions[{number}] is {_said(output)}; give the model's output as text")
    for number, answers in enumerate(references):
        if isinstance(answers, str):
            raise FactsError(f"references[{number}] is the text {answers!r}; give a list of answers, [{answers!r}]")
        if not isinstance(answers, Sequence) or not all(isinstance(answer, str) for answer in answers):
            raise FactsError(f"references[{number}] is {_said(answers)}; give a list of answers as text")


def _said(value: Any) -> str:
    text = repr(value)
    return f"{text[:40]}…" if len(text) > 40 else text


class CbqaMastery(evaluate.Metric):  # type: ignore[misc]
    """The metric; see `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.List(datasets.Value("string")),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2509.16596"],
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, float] | None:
        """As `evaluate.Metric.compute`.

        Raises:
            FactsError: inputs that cannot be scored, in one line.
        """
        if predictions is not None or references is not None:
            check_inputs(predictions, references)
            options |= {"predictions": predictions, "references": references}
        result: dict[str, float] | None = super().compute(**options)
        return result

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        return score_answers(predictions, references)
