"""What another installed package brings is used like what ships: the examples of docs/extending, end to end."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sftknow.artifacts.mastery_data import MasteryData
from sftknow.cli.main import main
from sftknow.errors import FactsError, RecipeError
from sftknow.facts.sources import SOURCES
from sftknow.grading.samplers import SAMPLERS
from sftknow.recipes.load import load_recipe
from sftknow.registry import Registry
from sftknow.training.strategies import STRATEGIES
from tests.test_registry import plug_in

Install = Callable[[str, Registry[Any], str], None]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "extending"


def example(page: str) -> str:
    """The Python of a page."""
    found = re.search(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs the example of a page, and takes it out again."""
    named: list[tuple[Registry[Any], str]] = []

    def install(page: str, registry: Registry[Any], name: str) -> None:
        folder = tmp_path / "site"
        folder.mkdir(exist_ok=True)
        module = f"example_{name.replace('-', '_')}"
        plug_in(folder, module, example(page))
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, module, raising=False)
        named.append((registry, name))

    yield install
    for registry, name in named:
        registry.remove(name)


def test_a_facts_source_of_another_package(
    installed: Install, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "graded"
    arguments = ["grade", str(tiny_model), "--facts", "planets", "--samples", "2", "--out", str(out)]
    assert main(arguments) == 2
    assert "no facts at 'planets': give 'lab', 'quick', 'entity-questions', a folder" in capsys.readouterr().err
    installed("facts-sources.md", SOURCES, "planets")
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert "facts: 2 from planets (1 train, 1 test)" in said
    assert "mountains of other planets" in said
    data = MasteryData(out)
    assert [row.fact.subject for row in data.split("train")] == ["Olympus Mons"]
    assert data.manifest["facts"]["source"] == "planets"
    assert load_recipe("lab", ["facts.source=planets"]).facts.source == "planets"


def test_a_training_strategy_of_another_package(
    installed: Install, tiny_model: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = ["sft", "--model", str(tiny_model), "--mastery", str(tiny_dataset), "--bucket", "2", "--size", "4"]
    begin += ["--set", "learning_rate=1e-2"]
    asked = [*begin, "--strategy", "pull-back", "--set", "strategy.share=0.5", "--out", str(tmp_path / "pulled")]
    assert main(asked) == 2
    assert "--strategy: there is no 'pull-back'; there are dora, " in capsys.readouterr().err
    installed("training-strategy.md", STRATEGIES, "pull-back")
    assert main(asked) == 0
    assert main([*begin, "--out", str(tmp_path / "plain")]) == 0
    base, plain, pulled = (
        load_file(folder / "model.safetensors") for folder in (tiny_model, tmp_path / "plain", tmp_path / "pulled")
    )
    for name, tensor in pulled.items():
        torch.testing.assert_close(tensor, (base[name] + plain[name]) / 2)
    recipe = load_recipe("lab", ["grid.strategies=[pull-back]", "strategies.pull-back.share=0.5"])
    assert recipe.strategy("pull-back").record()["share"] == 0.5


def test_a_source_of_topics_that_are_not_there(tmp_path: Path) -> None:
    from sftknow.answers import Synonyms
    from sftknow.facts.sources import SourceFacts, load_facts
    from sftknow.facts.topics import load_topics
    from tests.tiny import tiny_facts

    SOURCES.register("odd")(lambda topics, synonyms: SourceFacts(facts=tiny_facts(2)))
    try:
        with pytest.raises(FactsError, match=r"odd gives the fact .* of the topic .*, which no topics file has"):
            load_facts("odd", topics={"P1": load_topics()["P17"]}, synonyms=Synonyms.load())
    finally:
        SOURCES.remove("odd")


def test_a_sampler_of_another_package(
    installed: Install, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = tmp_path / "facts.csv"
    facts.write_text("subject,relation,object,split\nOslo,P36,e,train\n")
    out = tmp_path / "graded"
    arguments = ["grade", str(tiny_model), "--facts", str(facts), "--samples", "2", "--sampler", "plain"]
    arguments += ["--out", str(out), "--match", "word", "--keep-texts"]
    assert main(arguments) == 2
    assert "--sampler should be 'transformers' or 'vllm', not 'plain'" in capsys.readouterr().err
    with pytest.raises(RecipeError, match=r"grading\.sampler should be 'transformers' or 'vllm', not 'plain'"):
        load_recipe("lab", ["grading.sampler=plain"])
    installed("samplers.md", SAMPLERS, "plain")
    assert main(arguments) == 0
    data = MasteryData(out)
    assert data.manifest["sampler"] == "plain"
    (row,) = data.split("train")
    assert row.mastery.tries == 2 * 21
    texts = [text for tally in data.continuations() for text in tally.texts or ()]
    assert len(texts) == 2 * 21
    assert load_recipe("lab", ["grading.sampler=plain"]).grading.sampler == "plain"
