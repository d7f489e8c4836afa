"""The SFT recipe refuses what cannot be trained, by name and with a way out."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from sftknow.errors import RecipeError
from sftknow.training.recipe import SFTRecipe


def test_the_defaults_are_the_papers() -> None:
    recipe = SFTRecipe()
    assert (recipe.batch_size, recipe.epochs, recipe.learning_rate) == (8, 1, 1e-5)
    assert (recipe.optimizer, recipe.lr_scheduler, recipe.answer_only_loss) == ("adamw_torch", "cosine", True)
    assert recipe.autocast is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("load_dtype", "fp32"),
        ("compute_dtype", "float64"),
        ("save_dtype", "int8"),
        ("optimizer", "adamw_bnb_8bit"),
        ("lr_scheduler", "cosines"),
        ("batch_size", 0),
        ("batch_size", 8.0),
        ("epochs", True),
        ("max_length", 4),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", "1e-5"),
        ("weight_decay", -0.1),
        ("warmup_ratio", 1.0),
        ("max_grad_norm", 0),
        ("answer_only_loss", "yes"),
    ],
)
def test_values_out_of_range_are_named(field: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=field):
        SFTRecipe(**{field: value})


def test_dtypes_that_cannot_go_together_are_refused() -> None:
    with pytest.raises(RecipeError, match="load_dtype float16"):
        SFTRecipe(load_dtype="float16", compute_dtype="float16")
    with pytest.raises(RecipeError, match="set compute_dtype to bfloat16"):
        SFTRecipe(load_dtype="bfloat16")
    assert SFTRecipe(load_dtype="bfloat16", compute_dtype="bfloat16").autocast is None
    assert SFTRecipe(compute_dtype="bfloat16").autocast == "bfloat16"


def test_checking_a_recipe_loads_no_torch() -> None:
    code = "import sys, sftknow.training.recipe, sftknow.training.draws; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
