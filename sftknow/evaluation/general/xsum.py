"""What the YAML of the task ``sftknow_xsum`` names: reading the articles, and scoring one summary by ROUGE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets

from sftknow.dependencies import import_extra
from sftknow.errors import GeneralTaskError, SftknowError
from sftknow.evaluation.general.data import load_split
from sftknow.evaluation.general.tasks import ARTICLE_WORDS, ROUGE_SCORER, find_task, shortened

__all__ = ["ARTICLE_WORDS", "ROUGE", "ArticlesError", "load_articles", "process_results", "rouge"]

ROUGE = ("rouge1", "rouge2", "rougeL")


class ArticlesError(GeneralTaskError, SystemExit):
    """Articles that the task cannot use. Uncaught, it ends the lm_eval command with its one line and exit code 1."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = f"sftknow_xsum: {message}"


def load_articles(
    *,
    xsum_data: str | None = None,
    article_words: int = ARTICLE_WORDS,
    **model_args: Any,
) -> dict[str, datasets.Dataset]:
    """The test articles: lm-eval's ``custom_dataset``.

    Args:
        xsum_data: folder of the data, from ``--metadata``; None for the Hub.
        article_words: words of an article that are shown; the cut is the same in training and evaluation, whatever
            the tokenizer.
        model_args: what else lm-eval hands over.

    Raises:
        ArticlesError: there are no usable data, or rouge_score is not installed.
    """
    try:
        _scorer()  # before a model has answered for an hour
        rows = load_split(find_task("xsum"), Path(xsum_data) if xsum_data else None, "test")
    except SftknowError as error:
        raise ArticlesError(str(error)) from None
    return {"test": datasets.Dataset.from_list([shortened(row, int(article_words)) for row in rows])}


def process_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L of one summary: lm-eval's ``process_results``."""
    return rouge(results[0], document["summary"])


def rouge(summary: str, reference: str) -> dict[str, float]:
    """F-measures between 0 and 1 (Lin, 2004), words stemmed by Porter, as is usual for XSum; by rouge_score."""
    scores = _scorer().score(reference.strip(), summary.strip())
    return {name: float(scores[name].fmeasure) for name in ROUGE}


@lru_cache(maxsize=1)
def _scorer() -> Any:
    return import_extra(*ROUGE_SCORER).RougeScorer(list(ROUGE), use_stemmer=True)
