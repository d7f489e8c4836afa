"""The paper's numbers: totals, sums and means as printed, and the text's own differences found again."""

from __future__ import annotations

import pytest

from sftknow.report.layout import Entry
from sftknow.report.paper import PATTERN, Beside, distributions, nearest_size, paper, recognise, table, unlike

MODELS = {"LLaMA-2-7B", "LLaMA-2-13B", "LLaMA-2-70B", "LLaMA-3-8B", "LLaMA-3-70B"}
LEVELS = ["0%", "1%", "3%", "5%", "10%", "20%", "40%", "60%"]


def test_every_table_is_there() -> None:
    assert sorted(paper()["tables"], key=int) == [str(i) for i in range(1, 12)]
    assert len(paper()["claims"]) == 6


def test_every_distribution_adds_up_to_the_data_set() -> None:
    assert set(distributions()) == MODELS
    for found in distributions().values():
        assert {split: sum(counts) for split, counts in found.items()} == {
            "train": 75_944,
            "test": 9_555,
            "testood": 11_613,
        }
    assert table(1)[PATTERN]["train"] == [18456, 29571, 11558, 8923, 7436]


def test_means_of_table_2_are_the_means_of_its_buckets() -> None:
    odd = {("LLaMA-3-8B", "1", "testood"), ("LLaMA-3-8B", "3", "testood")}  # as printed; the note says so
    for model, sources in table(2).items():
        assert list(sources) == ["0", "1", "2", "3", "4"]
        for source, splits in sources.items():
            for split, values in splits.items():
                *buckets, mean = [value for value, _ in values]
                assert len(buckets) == 5
                off = abs(sum(buckets) / 5 - mean)
                assert off <= (0.0085 if (model, source, split) in odd else 0.00501), (model, source, split)
                assert off > 0.0055 or (model, source, split) not in odd
    assert "50.80" in paper()["notes"]["2"]
    assert "51.04" in paper()["notes"]["2"]


def test_concentration_grows_with_the_share() -> None:
    for size in ("240", "1920"):
        for levels in table(3)[size].values():
            values = list(levels.values())
            assert list(levels) == LEVELS[1:]
            assert values == sorted(values)
    assert table(3)["240"]["0"]["1%"] == 70.59


def test_the_texts_differences_are_those_of_the_tables() -> None:
    four = table(4)["test"]["1920"]
    assert all(
        list(found) == LEVELS for split in table(4).values() for size in split.values() for found in size.values()
    )
    assert round(four["0"]["20%"] - four["0"]["0%"], 2) == 9.85
    assert round(four["0"]["40%"] - four["0"]["0%"], 2) == 10.48
    assert round(max(four["4"].values()) - four["4"]["0%"], 2) == 3.44
    eight = table(2)["LLaMA-3-8B"]
    assert round(eight["2"]["test"][5][0] - eight["0"]["test"][5][0], 2) == 12.06
    # The level that the rule for parameter finding 1 looks at: better for all ten models.
    assert all(f["10%"] > f["0%"] for size in table(4)["test"].values() for f in size.values())


def test_table_7_takes_its_numbers_from_table_4() -> None:
    seven, four = table(7), table(4)
    for split in ("test", "testood"):
        assert seven["divided"][split] == max(f["0%"] for f in four[split]["1920"].values())
        assert seven["restored"][split] == max(max(f.values()) for f in four[split]["1920"].values())


def test_shares_of_layers_and_modules_add_up() -> None:
    assert list(table(9)) == [str(i) for i in range(32)]
    assert sum(table(9).values()) == pytest.approx(99.99, abs=1e-9)
    assert sum(table(10).values()) == pytest.approx(99.99, abs=1e-9)
    assert len(table(10)) == 7


def test_the_other_tables_are_whole() -> None:
    assert {s: {b: list(f) for b, f in t.items()} for s, t in table(6).items()} == {
        s: {str(b): ["0%", "5%", "20%"] for b in range(5)} for s in ("240", "1920")
    }
    assert list(table(5)) == LEVELS
    assert table(5)["10%"] == {"rouge1": 42.57, "rouge2": 19.40, "rougeL": 34.60, "acc": 59.60}
    assert all(list(f) == [f"{i}-{i + 3}" for i in range(0, 32, 4)] for f in table(11).values())
    assert sum(sum(f.values()) for f in table(11).values()) == pytest.approx(2053.11, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("meta-llama/Meta-Llama-3-8B", "LLaMA-3-8B"),
        ("meta-llama/Llama-2-7b-hf", "LLaMA-2-7B"),
        ("NousResearch/Llama-2-13b-hf", "LLaMA-2-13B"),
        ("models/Llama-2-70b/", "LLaMA-2-70B"),
        ("meta-llama/Meta-Llama-3-70B", "LLaMA-3-70B"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", None),
        ("meta-llama/Llama-3.1-8B", None),
        ("meta-llama/Llama-3.2-1B", None),
        ("meta-llama/Llama-2-7b-chat-hf", None),
        ("meta-llama/Llama-2-8b", None),
        ("lab", None),
        (None, None),
    ],
)
def test_names(name: str | None, expected: str | None) -> None:
    assert recognise(name) == expected


def test_configurations() -> None:
    eight = {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336,
        "vocab_size": 128256, "rope_theta": 500000.0, "eos_token_id": 128001,
    }  # fmt: skip
    assert recognise("/disk/base", eight) == "LLaMA-3-8B"
    assert recognise("/disk/base", {**eight, "eos_token_id": 128009}) is None, "instruct"
    assert recognise("/disk/base", {**eight, "rope_scaling": {"rope_type": "llama3"}}) is None, "3.1"
    assert recognise("/disk/base-instruct", eight) is None
    assert recognise("someone/tuned", eight) is None, "a Hub id of another name decides"
    seven = {**eight, "intermediate_size": 11008, "vocab_size": 32000, "rope_theta": 10000.0, "eos_token_id": 2}
    assert recognise("base", seven) == "LLaMA-2-7B"
    assert recognise("base", {**seven, "vocab_size": 32016}) is None
    assert recognise("base", {"model_type": "qwen3"}) is None


def test_beside() -> None:
    entry = Entry(text="46.0", value=46.0)
    own = Beside(model="LLaMA-3-8B").entry(entry, 45.47, number=2)
    assert own.paper == "paper 45.5 (+0.5)"
    assert own.extra == {"paper": 45.47, "difference from paper": pytest.approx(0.53)}
    away = Beside(model="LLaMA-3-8B").entry(entry, 45.47, number=2, same=False, place="1,920 facts")
    assert away.paper == "pattern 45.5, 1,920 facts"
    assert away.extra == {"paper": 45.47}
    spread = Beside(model="LLaMA-3-8B").entry(entry, 45.47, number=2, spread=0.4)
    assert spread.paper == "paper 45.5 ± 0.4 (+0.5)"
    assert spread.extra["paper's spread"] == 0.4
    other = Beside(model=None)
    assert other.entry(entry, 45.47, number=2).paper == "pattern 45.5"
    assert "not a target" in other.legend(2)
    assert Beside(model="LLaMA-2-7B").shown(2) == PATTERN
    assert Beside(model="LLaMA-2-7B").shown(1) == "LLaMA-2-7B"
    assert other.entry(entry, None, number=2) is entry
    assert [nearest_size(n) for n in (1, 240, 600, 700, 5000)] == [240, 240, 240, 1920, 1920]


def test_other_settings_than_the_papers_are_no_like() -> None:
    entry = Entry(text="46.0", value=46.0)
    stated = {"grading": {"samples": 10}, "sft": {"learning_rate": 1e-5, "weight_decay": 0.1}}
    assert unlike(stated) == unlike(None) == unlike({"sft": None}) == ()
    faster = Beside(model="LLaMA-3-8B", unlike=unlike({"sft": {"learning_rate": 3e-4}}))
    assert faster.entry(entry, 45.47, number=2).paper == "pattern 45.5"
    assert "this run has sft.learning_rate 0.0003, the paper has not" in faster.legend(2)
    assert faster.shown(2) == "LLaMA-3-8B"
    assert faster.entry(entry, 45.0, number=1).paper == "paper 45.0 (+1.0)", "the grading is the paper's"
    fewer = Beside(model="LLaMA-3-8B", unlike=unlike({"grading": {"samples": 4}}))
    assert fewer.entry(entry, 45.0, number=1).paper == "pattern 45.0"
