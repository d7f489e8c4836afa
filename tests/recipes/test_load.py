from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sftknow.artifacts.files import digest
from sftknow.errors import RecipeError
from sftknow.recipes.load import dump_recipe, load_recipe, override_section, shipped_recipes
from sftknow.recipes.schema import Recipe
from sftknow.training.recipe import SFTRecipe


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


def test_defaults_are_the_papers() -> None:
    recipe = Recipe(name="x")
    assert (recipe.grading.samples, recipe.grading.temperature, recipe.grading.max_new_tokens) == (10, 0.7, 32)
    assert (recipe.sft.learning_rate, recipe.sft.batch_size, recipe.sft.epochs) == (1e-5, 8, 1)
    assert recipe.grid.sizes == (60, 120, 240, 480, 960, 1920, "all")
    assert recipe.parameters.levels == ("1%", "3%", "5%", "10%", "20%", "40%", "60%")


def test_what_finished_stages_stand_on_is_what_it_was() -> None:
    """The digests of the default recipe's part in each stage's inputs; another one would redo every finished run."""
    recipe = Recipe(name="x")
    grading = recipe.grading
    asked = {name: getattr(grading, name) for name in ("templates", "keep_texts", "shard_size", "sampler")}
    inputs = {
        "grading": {**asked, "policy": grading.policy, "match": grading.rule},
        "training": recipe.sft.saving_like("bfloat16").record(),
        "adapters": replace(recipe.sft.saving_like("bfloat16"), lora=recipe.lora).record(),
        "divergence": recipe.divergence.settings(),
        "changes": recipe.parameters.settings(),
    }
    assert {name: digest(content)[:16] for name, content in inputs.items()} == {
        "grading": "e2f7b0ed22d1e2d1",
        "training": "1d2309dc9b019809",
        "adapters": "861b6a68bab6f0ef",
        "divergence": "f2e00aeab2712ec6",
        "changes": "c85245cae6272195",
    }


def test_overrides_win_and_later_ones_win_over_earlier(tmp_path: Path) -> None:
    recipe = load_recipe("lab", ["grid.sizes=[10]", "grid.sizes=[60, all]", "sft.learning_rate=1e-5"])
    assert recipe.grid.sizes == (60, "all")
    assert recipe.sft.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ngrid:\n  bucket: [1]\n", "line 3: unknown key grid.bucket; known here: buckets, sizes"),
        ("\nfoo: 1\n", "line 2: unknown key foo"),
        ("sft:\n  learning_rate: fast\n", "line 2: sft.learning_rate should be a valid number, not 'fast'"),
        ("grid:\n  seeds: [1]\n  sizes: [0]\n", "line 3: grid.sizes.0 should be greater than or equal to 1"),
        ("grid:\n  buckets: [5]\n", "line 2: grid.buckets.0"),
        ("restore:\n  cells: worst\n", "line 2: restore.cells should be a list or 'best' or 'all', not 'worst'"),
        ("grid: [1\n", "line 2: "),
        ("- a\n", "a recipe is a mapping"),
    ],
)
def test_mistakes_are_named_with_their_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["x", "grid.sixes=[1]", "model=3", "grading.samples=two", "name.x=1", "a=[1"])
def test_bad_overrides_are_named(override: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        load_recipe("lab", [override])


def test_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"no recipe is called lob; there are: .*lab"):
        load_recipe("lob")
    with pytest.raises(RecipeError, match="no recipe file"):
        load_recipe("missing.yaml")


def test_override_section() -> None:
    assert override_section(SFTRecipe, ["learning_rate=3e-4"]).learning_rate == 3e-4
    with pytest.raises(RecipeError, match="unknown key rate"):
        override_section(SFTRecipe, ["rate=1"])
    with pytest.raises(RecipeError, match="epochs"):
        override_section(SFTRecipe, ["epochs=0"])


def test_a_strategys_options_stand_in_its_own_section() -> None:
    recipe = load_recipe("lab", ["grid.strategies=[l2-sp,dft]", "strategies.l2-sp.strength=0.5"])
    assert recipe.strategy("l2-sp").record() == {"name": "l2-sp", "learning_rate": None, "strength": 0.5}
    assert recipe.strategy("dft").record() == {"name": "dft", "learning_rate": None}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["arena.of=[mixed]"], "--set arena.of=[mixed]: arena.of: the grid trains no such model on mixed"),
        (["grid.lora=true", "arena.ranking_of=[mixed]"], "arena.ranking_of: the grid trains no such model on mixed"),
        (["arena.of=[7]"], "arena.of.0 "),
        (["arena.after=[relative]"], "arena.after has no effect without arena.of"),
        (["arena.levels={trim: ['5%']}"], "arena.levels has no effect without arena.of"),
        (["arena.ranking=['5%']"], "arena.ranking has no effect without arena.ranking_of"),
        (["arena.statements=3"], "arena.statements has no effect without arena.of"),
        (["arena.of=[0]", "arena.after=[no-such]"], "arena.after.0 should be 'relative', "),
        (
            ["arena.of=[0]", "arena.levels={dare: ['5%']}"],
            "arena.levels.dare has no effect: arena.after does not name it",
        ),
        (
            ["arena.of=[0]", "arena.after=[layers]", "arena.levels={layers: ['5%']}"],
            "arena.levels.layers: this method takes no shares; leave its levels out",
        ),
        (["arena.of=[0]", "evaluation.splits=[test]"], "evaluation.splits needs dev and test"),
        (["grid.mixed_sizes=[8]"], "grid.mixed_sizes has no effect: the grid has no mixed draws"),
        (["grid.processes=2", "grid.engine=ray"], "grid.processes and grid.engine ray do not go together"),
        (["grid.processes=2", "accelerate.processes=2"], "grid.processes and accelerate do not go together"),
    ],
)
def test_mistakes_about_arenas(settings: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(words)):
        load_recipe("lab", settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["grid.strategies=[no-such]"], "grid.strategies.0 should be 'dora', "),
        (["strategies.dft.learning_rate=1"], "strategies.dft has no effect: grid.strategies does not name it"),
        (
            ["grid.strategies=[dft]", "strategies.dft.strength=1"],
            "unknown key strategies.dft.strength; known here: lear",
        ),
        (["grid.strategies=[l2-sp]", "strategies.l2-sp.strength=-1"], "strategies.l2-sp.strength should be greater th"),
        (["grid.strategies=[l2-sp]", "strategies.l2-sp=3"], "strategies should be a valid dictionary, not 3"),
        (["grid.strategies_on=[2]"], "grid.strategies_on has no effect without grid.strategies"),
    ],
)
def test_mistakes_about_strategies(settings: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(words)):
        load_recipe("lab", settings)
