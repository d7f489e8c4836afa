"""How token divergence is measured: options that recipes and `sftknow divergence` share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from sftknow.models.options import ModelOptions
from sftknow.options import NOT_IN_RECIPES, Bucket, Count, Dtype, Limits, shown_as
from sftknow.records import BUCKETS

Shown = Literal["statement", "question"]
"""What a model is shown: a fact's statement template, or its question in the prompt of fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class DivergenceOptions(ModelOptions):
    """What decides the numbers (paper, 4.1); see `sftknow.divergence.base` and `sftknow.divergence.analysis`."""

    k: Count = 10
    """Largest logits of the fine-tuned model that are compared."""
    window: Count = 3
    """The answer must start within this many tokens of the base model's completion.

    The paper says "near the beginning" (4.1). Three tokens leave room for an article or a quotation mark before the
    answer; a wider window takes in facts whose first token says little about the answer."""
    base_prompt: Shown = "statement"
    """What the base is shown: a statement to complete, or the question of fine-tuning.

    The paper says that the base completes "the prior text" by the statement template of each topic with the highest
    success rate (4.1): of all that were sampled, over the topic's facts in the bucket, the first of equals."""
    tuned_prompt: Shown = "question"
    """What the fine-tuned model is shown in the headline; the other of the two is measured beside it.

    The paper does not say. Shown the base's statement, a model that has learned nothing has a divergence of 0, which
    can only grow with the data; shown the question that it was trained on, the divergence is large after 60 facts and
    falls with more, as the paper reports (finding 1). On the lab, over 20 trainings, its rank correlation with
    bucket-4 accuracy is −0.95 with the question and +0.29 with the statement."""
    buckets: Annotated[tuple[Bucket, ...], Limits(min_length=1)] = BUCKETS
    """Test buckets to measure. The headline is the highest; the paper measures 4."""
    bootstrap: Annotated[int, Limits(ge=100)] = 2000
    """Resamples behind the interval of the mean."""
    dtype: Dtype = "float32"
    """Load both models in that dtype, whatever they are scored in.

    The paper does not say. Rounded logits diverge by themselves, by as much as a light fine-tuning does; the recipes
    for 70 B parameters, which few machines hold in float32, name what the weights are stored in."""
    topics_file: str | Path | None = field(default=None, metadata={**NOT_IN_RECIPES, **shown_as("FILE")})
    """Topics file, merged over the paper's 24 topics."""
    any_base: bool = field(default=False, metadata=NOT_IN_RECIPES)
    """Measure also where the facts were graded by another model than the base."""
