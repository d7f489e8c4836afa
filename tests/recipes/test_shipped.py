"""The recipes that ship: the paper's settings, and one that explains every key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sftknow.artifacts.stages import RunDirectory
from sftknow.errors import MasteryDataError
from sftknow.options import Options, recipe_keys
from sftknow.recipes.load import load_recipe, shipped_recipes
from sftknow.recipes.schema import Recipe
from sftknow.report.paper import recognise
from sftknow.resources import recipe_folder
from sftknow.run.cells import grid_cells
from sftknow.run.checks import check_words
from sftknow.run.experiment import Experiment
from sftknow.run.planning import STORED

PAPER = {
    "paper-llama-2-7b": "LLaMA-2-7B",
    "paper-llama-2-13b": "LLaMA-2-13B",
    "paper-llama-2-70b": "LLaMA-2-70B",
    "paper-llama-3-8b": "LLaMA-3-8B",
    "paper-llama-3-70b": "LLaMA-3-70B",
}


def keys(section: type[Options], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a recipe, those of sections within sections too."""
    for name, kind in recipe_keys(section).items():
        yield (*before, name)
        if kind is not None:
            yield from keys(kind, (*before, name))


def test_all_that_are_promised_are_there() -> None:
    assert set(shipped_recipes()) == {"lab", "lab-full", "arena", "arena-quick", "any-model", "smollm2-135m", *PAPER}


@pytest.mark.parametrize("name", shipped_recipes())
def test_nothing_in_them_contradicts_itself(name: str) -> None:
    recipe = load_recipe(name)
    check_words(recipe)
    assert recipe.description
    if recipe.accelerate.config:
        assert (recipe_folder() / "accelerate" / f"{recipe.accelerate.config}.yaml").is_file()


@pytest.mark.parametrize(("name", "model"), PAPER.items())
def test_the_papers_settings(name: str, model: str) -> None:
    recipe = load_recipe(name)
    assert recognise(recipe.model.path) == model
    assert recipe.facts.source == "entity-questions"
    grading, sft, grid = recipe.grading, recipe.sft, recipe.grid
    assert (grading.samples, grading.temperature, grading.max_new_tokens, grading.templates) == (10, 0.7, 32, None)
    assert (sft.batch_size, sft.epochs, sft.lr_scheduler, sft.learning_rate) == (8, 1, "cosine", 1e-5)
    assert sft.save_dtype == recipe.model.dtype == STORED[model].dtype, "else rounding counts as change"
    assert grid.buckets == (0, 1, 2, 3, 4)
    assert grid.sizes == (60, 120, 240, 480, 960, 1920, "all")
    assert len(grid.seeds) == 5
    assert grid.mixed
    assert len(grid_cells(grid)) == (245 if name == "paper-llama-3-8b" else 210)
    assert recipe.parameters.levels == ("1%", "3%", "5%", "10%", "20%", "40%", "60%")
    assert all(recognise(path) is None for path in grid.baselines.values()), "a baseline is no base model"
    assert len(grid.baselines) == 1


def test_the_comment_in_a_paper_recipe_counts_its_models() -> None:
    for name in PAPER:
        text = (recipe_folder() / f"{name}.yaml").read_text()
        assert f"# {len(grid_cells(load_recipe(name).grid))} models:" in text


def test_any_model_has_every_key_with_its_default_or_says_so() -> None:
    text = (recipe_folder() / "any-model.yaml").read_text()
    there = yaml.safe_load(text)
    recipe, default = load_recipe("any-model"), Recipe(name="any-model", description=there["description"])
    for path in keys(Recipe):
        place, mine, usual = there, recipe, default
        for key in path:
            assert key in place, f"any-model does not explain {'.'.join(path)}"
            place, mine, usual = place[key], getattr(mine, key), getattr(usual, key)
        if not isinstance(mine, Options) and mine != usual:
            line = next(
                line for line in text.splitlines() if line.strip().startswith(f"{path[-1]}:") and "default:" in line
            )
            assert line.rstrip().endswith(f"default: {json.dumps(usual).replace(chr(34), '')}"), path


@pytest.mark.slow
def test_any_model_on_a_model_and_facts_of_ones_own(tmp_path: Path, tiny_model: Path) -> None:
    """As a stranger would start it, on a model that knows nothing: it says "e" often, and never "Xyzzy"."""
    rows = [
        {"topic": topic, "subject": f"{topic} {split} {i}", "object": name, "split": split}
        for split, count in (("train", 40), ("dev", 10), ("test", 10))
        for topic, name in (("P17", "e"), ("P36", "Xyzzy"))
        for i in range(count)
    ]
    facts = tmp_path / "facts.jsonl"
    facts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        f"model.path={tiny_model}",
        f"facts.source={facts}",
        "grading.samples=2",
        "grid.sizes=[8]",
        "grid.seeds=[0]",
        "grid.buckets=[0]",
        "divergence.window=32",
        "divergence.bootstrap=100",
    ]
    with RunDirectory(tmp_path / "run") as directory:
        refused = load_recipe("any-model", [*settings, "grid.buckets=[0,2]", "grid.sizes=[50]", "grid.mixed=false"])
        told: list[str] = []
        Experiment(refused, directory, say=told.append).run()
        assert any(line.startswith("left out: ") and "; what fits: --set grid." in line for line in told)
        data = Experiment(refused, directory, say=lambda line: None).bench.dataset
        said_often = [bucket for bucket in range(1, 5) if data.count("test", bucket)]
        settings.append(f"divergence.buckets={said_often}")
        with pytest.raises(MasteryDataError, match="raise the window"):
            Experiment(load_recipe("any-model", [*settings, "divergence.window=1"]), directory).run()
        assert not list((tmp_path / "run" / "models").glob("*-s0")), "nothing was trained for it"
        said: list[str] = []
        Experiment(load_recipe("any-model", settings), directory, say=said.append).run()
    assert not [line for line in said if line.startswith("grading")], "what was graded before the refusal is kept"
    assert (tmp_path / "run" / "report" / "report.html").is_file()
    assert (tmp_path / "run" / "choice.json").is_file()
