"""Option classes: one range, one message, one explanation, wherever a value comes from."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import pytest

from sftknow.cli.main import main
from sftknow.errors import OptionError, RecipeError
from sftknow.options import (
    NOT_IN_RECIPES,
    Bytes,
    Count,
    Level,
    Limits,
    Options,
    explanations,
    from_settings,
    recipe_keys,
    silences,
)
from sftknow.recipes.load import load_recipe, override_section
from sftknow.recipes.schema import Recipe
from sftknow.training.recipe import SFTRecipe


@dataclass(frozen=True, kw_only=True)
class Inner(Options):
    count: Count = 3
    """How many; None for
    all of them."""
    size: Bytes = 1


@dataclass(frozen=True, kw_only=True)
class Outer(Options):
    names: tuple[str, ...] | Literal["all"] = "all"
    level: Level | None = None
    rate: Annotated[float, Limits(ge=0)] = 0.5
    inner: Inner = field(default_factory=Inner)
    hidden: int = field(default=0, metadata=NOT_IN_RECIPES)


def test_settings_and_options_are_each_others_inverse() -> None:
    outer = Outer(names=("a",), level="5%", rate=1, inner=Inner(count=4), hidden=7)
    assert outer.settings() == {
        "names": ("a",), "level": "5%", "rate": 1.0, "inner": {"count": 4, "size": 1},
    }  # fmt: skip
    assert type(outer.rate) is float
    again = from_settings(Outer, {"names": ["a"], "level": "5%", "rate": 1, "inner": {"count": 4}})
    assert again == replace(outer, hidden=0)
    assert pickle.loads(pickle.dumps(outer)) == outer
    assert hash(again) == hash(replace(outer, hidden=0))


@pytest.mark.parametrize(
    ("settings", "keys", "message"),
    [
        ({"inner": {"count": 0}}, ("inner", "count"), "inner.count should be greater than or equal to 1, not 0"),
        ({"inner": {"count": "4"}}, ("inner", "count"), "inner.count should be a valid integer, not '4'"),
        ({"inner": {"size": True}}, ("inner", "size"), "inner.size should be a valid integer, not True"),
        ({"inner": 4}, ("inner",), "inner should be a section with keys such as count, not 4"),
        ({"inner": {"sum": 4}}, ("inner", "sum"), "unknown key inner.sum; known here: count, size"),
        ({"hidden": 4}, ("hidden",), "unknown key hidden; known here: names, level, rate, inner"),
        ({"names": "some"}, ("names",), "names should be a list or 'all', not 'some'"),
        ({"names": [1]}, ("names", "0"), "names.0 should be a valid string, not 1"),
        ({"level": "{key}"}, ("level",), "level should be a share such as '5%', '1/20' or '0.05', not '{key}'"),
        ({"rate": float("inf")}, ("rate",), "rate should be a finite number, not inf"),
    ],
)
def test_a_mistake_names_its_keys(settings: dict[str, object], keys: tuple[str, ...], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        from_settings(Outer, settings)
    assert (caught.value.keys, str(caught.value)) == (keys, message)
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_a_class_that_extends_another_may_have_its_own_keys_among_its() -> None:
    assert list(recipe_keys(Recipe(name="x").grading.__class__))[:5] == [
        "samples", "temperature", "max_new_tokens", "templates", "seed",
    ]  # fmt: skip


def test_sizes_are_read_as_people_write_them() -> None:
    assert from_settings(Inner, {"size": "2KB"}).size == 2000


def test_a_second_paragraph_says_where_the_paper_is_silent() -> None:
    assert explanations(SFTRecipe)["weight_decay"] == "AdamW's decoupled decay; norms and biases are exempt."
    assert silences(SFTRecipe)["weight_decay"].startswith("The paper names AdamW (3.3) and no decay.")
    assert "optimizer" not in silences(SFTRecipe)


def test_docstrings_of_fields_are_explanations() -> None:
    assert explanations(Inner) == {"count": "How many; None for all of them."}
    learned = explanations(SFTRecipe)["batch_size"]
    assert learned == "Examples behind one update, that is the effective batch."


def sections(kind: type[Options]) -> Iterator[type[Options]]:
    yield kind
    for section in recipe_keys(kind).values():
        if section is not None:
            yield from sections(section)


def test_every_section_of_a_recipe_is_frozen_and_explained() -> None:
    for kind in sections(Recipe):
        assert kind.__doc__
        assert not kind.__doc__.startswith(f"{kind.__name__}(")
        if kind is not Recipe:
            assert all(each.name in vars(kind()) for each in fields(kind))


@pytest.mark.parametrize(
    ("key", "value", "wish"),
    [
        ("batch_size", "0", "batch_size should be greater than or equal to 1, not 0"),
        ("load_dtype", "float16", "load_dtype float16 cannot be trained"),
        ("per_device_batch_size", "3", "per_device_batch_size is 3, which does not divide batch_size 8"),
    ],
)
def test_one_message_from_a_file_from_set_and_from_a_command(
    key: str, value: str, wish: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"name: mine\nsft:\n  epochs: 1\n  {key}: {value}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(file))
    assert str(caught.value).startswith(f"{file}, line 4: sft.{wish}")
    with pytest.raises(RecipeError) as caught:
        load_recipe("lab", [f"sft.{key}={value}"])
    assert str(caught.value).startswith(f"--set sft.{key}={value}: sft.{wish}")
    with pytest.raises(RecipeError) as caught:
        override_section(SFTRecipe, [f"{key}={value}"])
    assert str(caught.value).startswith(f"--set: {wish}")
    asked = ["sft", "--model", "lab", "--mastery", "x", "--bucket", "0", "--size", "8", "--out", str(tmp_path / "out")]
    assert main([*asked, "--set", f"{key}={value}"]) == 2
    assert capsys.readouterr().err.startswith(f"sftknow: --set: {wish}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["changes", "a", "b", "--strategy", "best"],
            "--strategy should be 'top', 'bottom', 'random', 'absolute', 'trim' or ",
        ),
        (["changes", "a", "b", "--epsilon", "-1"], "--epsilon should be greater than or equal to 0, not '-1'"),
        (["divergence", "a", "b", "--mastery", "c", "--buckets", "4,5"], "--buckets should be less than or equal to 4"),
        (["evaluate", "a", "--splits", "test,valid"], "--splits should be 'train', 'dev', 'test' or 'testood', not "),
        (["lab", "pretrain", "--limit", "0", "--out", "x"], "--limit should be greater than or equal to 1, not '0'"),
        (["restore", "a", "b", "--top", "5%"], "the following arguments are required: --out; see: sftknow restore"),
    ],
)
def test_a_command_names_its_own_option(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sftknow: {said}")
    assert error.count("\n") == 1
