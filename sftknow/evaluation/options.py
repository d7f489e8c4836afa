"""How models are scored: options that recipes and commands share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from sftknow.evaluation.general.tasks import ARTICLE_WORDS, TASKS
from sftknow.models.options import ModelOptions
from sftknow.options import Count, Level, Limits, Options
from sftknow.records import Split
from sftknow.registry import Registered

TaskName = Annotated[str, Registered(TASKS)]


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(Options):
    """What is scored on the cbqa_mastery tasks."""

    splits: tuple[Split, ...] = ("dev", "test", "testood")
    """Parts of the graded data set to score, of train, dev, test, testood."""
    limit: Count | None = None
    """Only the first questions of each leaf task; None for all."""
    dataset: str | None = None
    """Graded data set (folder or Hub id) that `sftknow evaluate --recipe` takes for models that name none."""
    examples: Annotated[int, Limits(ge=0)] = 4
    """A run also asks the base with so many solved training questions before each test question, which tells the format
    of an answer from knowledge; 0 for not."""
    regrade: Annotated[int, Limits(ge=0)] = 300
    """In-domain test facts that the chosen model, unrestored and restored, completes again as the base did; 0 for
    none."""


@dataclass(frozen=True, kw_only=True)
class GeneralOptions(ModelOptions):
    """How a general-ability task is asked (paper, Table 5), and where the model runs."""

    few_shot: Annotated[int, Limits(ge=0)] | None = None
    """Examples before each question; None for none, and for gsm8k 5, as in lm-eval."""
    limit: Count | None = None
    """Score only the first rows of each test split; None for all."""
    article_words: Count | None = None
    """xsum: words of an article that are shown; None for 1000."""

    @property
    def shown_words(self) -> int:
        """Words of an article that are shown."""
        return self.article_words or ARTICLE_WORDS


@dataclass(frozen=True, kw_only=True)
class AbilityOptions(GeneralOptions):
    """Other tasks (paper, Table 5): the base is fine-tuned on each task's own train split, restored and scored."""

    leading = ("tasks", "data", "size", "seed", "levels", "few_shot", "limit", "article_words", "max_length")

    tasks: tuple[TaskName, ...] = ()
    """Which: xsum, gsm8k and those that were added; none unless they are named here."""
    data: Mapping[TaskName, str] = field(default_factory=dict)
    """Folder of each task's data; a task that is not here is taken from the Hub."""
    size: Count | Literal["all"] = 1920
    """Training rows of each task.

    The paper does not say how many rows the models of Table 5 were trained on, whether one model learned both tasks,
    nor how they were asked; here each task has a model of its own and the size of the paper's larger models."""
    seed: int = 0
    levels: tuple[Level, ...] | None = None
    """Levels to restore; None for those that the grid's models are restored at."""
    few_shot: Annotated[int, Limits(ge=0)] = 0
    """gsm8k: examples before each question.

    The paper does not say. A model that was fine-tuned on the task needs none."""
    max_length: Annotated[int, Limits(ge=8)] = 2048
    """Longest training row in tokens, in place of that of ``sft``; whatever else stands in ``sft`` holds here too."""
    batch_size: Count = 16
    """Rows at once while scoring."""
