"""The commands as functions: models and places as people write them, results that show themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

import sftknow
from sftknow.errors import ModelError, RecipeError
from sftknow.grading.options import GradingOptions
from sftknow.recipes.schema import FactsSection
from sftknow.run.python import setting
from tests.tiny import tiny_llama, tiny_tokenizer

QUICK = GradingOptions(samples=1, templates=(0,), max_new_tokens=4)


def test_a_model_is_scored_by_name_or_loaded(tiny_model: Path, tiny_dataset: Path) -> None:
    named = sftknow.evaluate(tiny_model, str(tiny_dataset), splits=("test",))
    data = sftknow.MasteryData(tiny_dataset)
    model, tokenizer = sftknow.load_model(str(tiny_model)), sftknow.load_tokenizer(tiny_model)
    loaded = sftknow.evaluate(model, data, tokenizer=tokenizer, splits=("test",))
    assert loaded.metrics == named.metrics
    assert set(named.to_pandas().columns) == {"task", "metric", "value", "stderr", "count"}
    assert named.headline().startswith(f"{tiny_model}: ")
    assert "cbqa_mastery_test" in named._repr_html_()
    with pytest.raises(ModelError, match="is scored with its tokenizer and a graded data set"):
        sftknow.evaluate(model, data)  # type: ignore[call-overload]


def test_two_models_are_compared(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other", tiny_tokenizer(), seed=3)
    found = sftknow.compare(tiny_model, str(other), mastery=tiny_dataset, splits=("test",), resamples=50)
    assert " points in cbqa_mastery_test (95% interval " in found.headline()
    assert len(found.to_pandas()) == len(found.differences)
    changed = sftknow.analyse(str(tiny_model), other)
    assert list(changed.to_pandas()["level"]) == ["1%", "5%", "20%"]
    assert "parameters of the region transformer changed" in changed.headline()


def test_facts_are_graded_once(tiny_model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    wanted = FactsSection(source="lab", limit=4)
    graded = sftknow.grade(tiny_model, wanted, out=tmp_path / "graded", options=QUICK, say=said.append)
    facts = sftknow.load_facts("lab", limit=4)
    assert len(graded.to_pandas()) == len(facts.to_pandas()) == len(facts.facts)
    assert graded.headline().startswith(f"{len(facts.facts)} facts graded by {tiny_model} (4 train, ")
    again = sftknow.grade(str(tiny_model), wanted, out=str(tmp_path / "graded"), options=QUICK, say=said.append)
    assert "nothing to do" in said[-1]
    assert again.fingerprint == graded.fingerprint


def test_load_dataset_shows_every_split(tiny_dataset: Path) -> None:
    import datasets

    whole = datasets.load_dataset(str(tiny_dataset))
    assert set(whole) == {"train", "dev", "test", "testood"}
    assert len(whole["testood"]) == sum(sftknow.MasteryData(tiny_dataset).count("testood", b) for b in range(5))
    one = datasets.load_dataset(str(tiny_dataset), "testood", split="bucket_3")
    assert set(one["bucket"]) == {3}


def test_settings_mean_what_they_say(tmp_path: Path) -> None:
    odd = "a: file #1, {of} mine.jsonl"
    recipe = sftknow.load_recipe("lab", [setting("facts.source", odd), setting("grid.sizes", (60, "all"))])
    assert (recipe.facts.source, recipe.grid.sizes) == (odd, (60, "all"))
    with pytest.raises(RecipeError, match="did you mean sizes"):
        sftknow.run("lab", settings={"grid.size": [60]}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checked_pair_may_be_paths(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="no model at"):
        sftknow.check(tiny_model, Path("./nowhere"))
