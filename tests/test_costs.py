"""The page of GPU memory and hours is what the estimator says."""

from __future__ import annotations

from sftknow.run.gpu_memory import gpu_bytes
from tests.costs import MODELS, PAGE, page, plan_of


def test_the_page_is_what_the_estimator_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.costs"


def test_memory_and_time_grow_with_the_model() -> None:
    plans = [plan_of(model) for model in MODELS.values()]
    totals = [sum(stage.seconds or 0 for stage in plan.stages) for plan in plans]
    assert totals == sorted(totals)
    needs = [gpu_bytes(plan.recipe, model) for plan, model in zip(plans, MODELS.values(), strict=True)]
    assert all(need["grading"] < need["divergence"] < need["training"] for need in needs)
    # Weights, gradients and two moments of 8 B parameters in float32 are 128 GB.
    assert 128e9 < needs[2]["training"] < 160e9
