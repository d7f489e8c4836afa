"""`--dry-run`: counts that are the run's own, times that say what they rest on, nothing written."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from sftknow.artifacts.files import write_json
from sftknow.artifacts.stages import RunDirectory
from sftknow.cli.main import main
from sftknow.errors import FactsAwayError, FactsError, HubError, RecipeError
from sftknow.grading.estimate import seconds_each
from sftknow.progress import time_text
from sftknow.recipes.load import load_recipe
from sftknow.recipes.schema import Recipe
from sftknow.records import ModelRef
from sftknow.report.paper import distributions, table
from sftknow.run.calibrating import calibrate, small_enough
from sftknow.run.cells import Cell
from sftknow.run.plan_text import plan_text
from sftknow.run.planning import OFFICIAL_COUNTS, RunPlan, plan_run
from sftknow.run.rates import (
    IN_THIS_RUN,
    ON_THE_SPOT,
    STATED,
    Rate,
    fit,
    matrix_rate,
    pass_rate,
    rates_of_run,
    stated_rates,
)
from sftknow.run.space import ModelSize
from sftknow.run.workbench import Workbench
from tests.run.small_run import SETTINGS, small_recipe

STAGES = ("grading", "training", "evaluation", "divergence", "changes", "restoring")


def measured(bench: Workbench) -> dict[str, Rate]:
    """In the place of a calibration: a fixed second, and a hundredth for each unit."""
    return {stage: Rate(fixed=1.0, each=0.01, basis=ON_THE_SPOT) for stage in STAGES}


def plan(path: Path, *settings: str) -> RunPlan:
    return plan_run(small_recipe(*settings), path, measure=measured)


def seconds(found: RunPlan) -> dict[str, float | None]:
    return {stage.name: stage.seconds for stage in found.stages}


def test_counts_are_those_that_the_run_would_have(tmp_path: Path) -> None:
    found = plan(tmp_path / "run", "grid.mixed=true", "grading.templates=[0,3]", "grading.samples=5")
    assert found.facts == {"train": 120, "dev": 30, "test": 30, "testood": 30}
    assert found.statements == 210 * 2
    assert [cell.name for cell in found.now.cells] == ["b0-n8-s0", "b4-n8-s0", "mixed-n8-s0"]
    assert [found.steps(cell) for cell in found.now.cells] == [1, 1, 1]
    assert found.questions == 90
    # 3 trainings of one step; base, 3 cells and 2 levels of the best are scored.
    assert seconds(found) == pytest.approx(
        {
            "grading": 1 + 0.01 * 210 * 2 * 5,
            "training": 3 * (1 + 0.01),
            "evaluation": 6 * (1 + 0.01 * 90),
            "divergence": 0.01 * 3,
            "changes": 0.01 * 3,
            "restoring": 0.01 * 2,
            # Two kinds at random in three draws, and two blends, on the test split.
            "controls": 1 + 0.01 * 8 * 30,
            "base with examples": 1 + 0.01 * 60,
            # The best model, unrestored and restored: 30 facts, two statements of each, five samples.
            "grading again": 2 + 0.01 * 2 * 30 * 2 * 5,
        }
    )
    assert not (tmp_path / "run").exists()


def test_steps_of_epochs_batches_and_all(tmp_path: Path) -> None:
    found = plan(tmp_path, "sft.epochs=3", "sft.batch_size=7", "grid.sizes=[8,all]", "grid.mixed=true")
    by_name = {cell.name: found.steps(cell) for cell in found.now.cells}
    assert by_name["b0-n8-s0"] == 2 * 3
    assert by_name["mixed-nall-s0"] == -(-120 // 7) * 3
    assert by_name["b0-nall-s0"] == -(-(120 // 5) // 7) * 3, "a fifth, until the grading tells"
    found.bucket_counts = (50, 10, 20, 30, 10)
    assert found.examples(Cell(bucket=0, size=None, seed=0)) == 50


def test_the_text_says_what_rests_on_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = plan_text(plan(tmp_path / "run"))
    for words in (
        "nothing is written there",
        "base model: lab, 3.8 M parameters stored as bfloat16",
        "210 facts, 4,410 statements × 1 sample = 4,410",
        "2 cells, 16 examples, 2 steps",
        "5 models × 90 questions",
        ON_THE_SPOT,
        "fine-tuned models (whole checkpoints)",
        "are free",
    ):
        assert words in text


def test_a_mistake_in_the_recipe_stays_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match="is not in the grid"):
        plan(tmp_path, "restore.cells=[b1-n8-s0]")
    with pytest.raises(RecipeError, match=r"too few for every cell of the grid; what fits: --set grid\.sizes="):
        plan(tmp_path, "grid.sizes=[5000]")
    (tmp_path / "few.csv").write_text("subject;relation;object\nFrance;capital;Paris\nJapan;capital;Tokyo\n")
    with pytest.raises(RecipeError, match="training facts in all, too few to train on; give at least 5, one for each"):
        plan(tmp_path, f"facts.source={tmp_path / 'few.csv'}")
    with pytest.raises(FactsError, match=r"no facts at 'nowhere\.jsonl'"):
        plan(tmp_path, "facts.source=nowhere.jsonl")
    assert main(["run", "lab", "--dry-run", "--set", "model.path=/nowhere", "--out", str(tmp_path / "x")]) == 2
    assert "there is no model at /nowhere" in capsys.readouterr().err


def test_what_cannot_be_reached_is_said_and_the_rest_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise FactsError("https://example.org/dataset.zip could not be fetched: no route")

    monkeypatch.setattr("sftknow.facts.sources.official_files", away)
    out = tmp_path / "run"
    assert main(["run", "paper-llama-3-8b", "--dry-run", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "could not be read: the model: " in text
    assert "could not be read: the facts: https://example.org/dataset.zip could not be fetched" in text
    assert "106,692 facts, 2,240,532 statements × 10 samples = 22,405,320" in text
    assert "245 cells" in text
    assert "the size is that of LLaMA-3-8B, as recorded with sftknow" in text
    assert f" {STATED}" in text
    assert not out.exists()

    assert main(["run", "lab", "--dry-run", "--model", "org/some-model", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "3,540 facts, 74,340 statements × 4 samples = 297,360" in text
    assert "disk: not known without the model" in text


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (HubError("down for today"), True),
        (HubError("not in the cache", reason="offline"), True),
        (FactsAwayError("down for today"), True),
        (HubError("org/facts could not be fetched: there is none", reason="missing"), False),
        (HubError("org/facts has no revision v9 in the cache", reason="revision"), False),
        (FactsError("line 3 is not in the cache of anybody"), False),
    ],
)
def test_what_is_away_is_told_by_the_kind_of_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, away: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("sftknow.run.workbench.load_facts", fail)
    if away:
        assert plan(tmp_path, "facts.source=org/facts").unread == [f"the facts: {error}"]
    else:
        with pytest.raises(type(error)):
            plan(tmp_path, "facts.source=org/facts")


def test_the_recorded_counts_are_the_papers() -> None:
    for name in ("LLaMA-3-8B", "LLaMA-2-7B"):
        for split in ("train", "test", "testood"):
            assert sum(distributions()[name][split]) == OFFICIAL_COUNTS[split]  # type: ignore[index]
    assert table(1)


# ---- rates ----------------------------------------------------------------------------------------------------------


def test_a_line_through_two_sizes() -> None:
    rate = fit([(10, 7.0), (10, 7.0), (40, 13.0)], IN_THIS_RUN)
    assert (rate.fixed, rate.each) == pytest.approx((5.0, 0.2))
    assert fit([(10, 5.0), (10, 7.0)], IN_THIS_RUN).seconds(20) == pytest.approx(12.0)
    # Never less than nothing for nothing.
    assert fit([(10, 1.0), (40, 40.0)], IN_THIS_RUN).fixed == 0.0


def test_rates_are_read_from_the_stages_of_the_run(tmp_path: Path) -> None:
    marks = tmp_path / "stages"
    for name, took, outputs in (
        ("models/b0-n80-s0", 6.0, {"steps": 10}),
        ("models/b4-n80-s0", 6.0, {"steps": 10}),
        ("models/b0-n160-s0", 11.0, {"steps": 20}),
        ("models/b4-n160-s0", 400.0, {"steps": 20}),
        ("models/b3-n160-s0", 11.0, {"steps": 20}),
        ("evaluation/base", 30.0, None),
        ("evaluation/b0-n80-s0", 30.0, None),
        ("evaluation/b0-n80-s0@layers-0-3", 3.0, None),
        ("divergence/b0-n80-s0", 2.0, None),
        ("changes/b0-n80-s0", 4.0, None),
        ("restored/b0-n80-s0/5pct", 3.0, None),
        ("restored/b0-n80-s0/20pct", 6.0, None),
    ):
        path = marks / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"key": "k", "inputs": {}, "outputs": outputs, "seconds": took}))
        path.with_name(f"{path.stem}.started.json").write_text(json.dumps({"key": "k", "started": 0}))
    (marks / "broken.json").write_text("{")
    rates = rates_of_run(tmp_path, 300)
    assert {rate.basis for rate in rates.values()} == {IN_THIS_RUN}
    # The stage that waited out a night between two starts is left out.
    assert (rates["training"].fixed, rates["training"].each) == pytest.approx((1.0, 0.5))
    assert rates["evaluation"].seconds(300) == pytest.approx(30.0)
    assert rates["divergence"].seconds(3) == pytest.approx(6.0)
    assert rates["restoring"].seconds(2) == pytest.approx(6.0), "the levels of a cell are written in one pass"


def test_a_run_that_is_half_done_is_told_from_its_own_times(tmp_path: Path) -> None:
    write_json(
        tmp_path / "stages" / "models" / "b0-n8-s0.json",
        {"key": "of other settings", "inputs": {}, "outputs": {"steps": 1}, "seconds": 9.0},
    )
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    found = plan(tmp_path)
    assert seconds(found)["training"] == pytest.approx(2 * 9.0)
    assert next(stage for stage in found.stages if stage.name == "training").rate == Rate(each=9.0, basis=IN_THIS_RUN)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_stated_rates_grow_with_the_model() -> None:
    flops = dict.fromkeys(("float32", "bfloat16", "float16"), 1e12)
    recipe = load_recipe("paper-llama-3-8b")
    small, large = (
        stated_rates(recipe, ModelSize(parameters=count, dtype="bfloat16"), facts=100, flops=flops)
        for count in (10**9, 10**10)
    )
    assert set(small) == set(STAGES)
    for stage in STAGES:
        assert small[stage].basis == STATED
        assert large[stage].seconds(1) == pytest.approx(10 * small[stage].seconds(1))


def test_a_matrix_product_is_measured() -> None:
    import torch

    assert matrix_rate(torch.device("cpu"), torch.float32, seconds=0.05) > 1e8


@pytest.mark.parametrize(
    ("count", "text"), [(0.2, "< 1 s"), (42, "42 s"), (600, "10 min"), (7200, "2.0 h"), (864_000, "10 days")]
)
def test_times_in_words(count: float, text: str) -> None:
    assert time_text(count) == text


@pytest.mark.slow
def test_a_few_real_batches_of_every_stage(tmp_path: Path) -> None:
    recipe: Recipe = load_recipe("lab", [*SETTINGS, "grid.storage=delta"])
    bench = Workbench(recipe, RunDirectory(tmp_path / "run"), lambda line: None)
    assert small_enough(ModelSize(parameters=3_800_000, dtype="bfloat16"), "cpu")
    assert not small_enough(ModelSize(parameters=8_000_000_000, dtype="bfloat16"), "cpu")
    rates = calibrate(bench)
    assert set(rates) == set(STAGES)
    for stage, rate in rates.items():
        assert rate.basis == ON_THE_SPOT
        assert 0 < rate.seconds(1) < 60, stage
    assert not (tmp_path / "run").exists()
    facts = tmp_path / "unknown.csv"  # of the real world, of which the lab's model knows nothing
    lands = {
        "France": "Paris",
        "Japan": "Tokyo",
        "Italy": "Rome",
        "Peru": "Lima",
        "Chile": "Santiago",
        "Mali": "Bamako",
    }
    rows = [f"{land};capital;{city};{split}" for land, city in lands.items() for split in ("train", "test")]
    facts.write_text("\n".join(["subject;relation;object;split", *rows[::2], rows[1]]) + "\n")
    plain = load_recipe("any-model", ["model.path=lab", f"facts.source={facts}", "grid.sizes=[1]"])
    assert calibrate(Workbench(plain, RunDirectory(tmp_path / "run"), lambda line: None))["divergence"].each == 0


def test_a_model_that_is_not_small_grades_a_few_statements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sftknow.run.calibrating.SMALL", {"cpu": 0})
    monkeypatch.setattr("sftknow.run.grading.seconds_each", partial(seconds_each, seconds=1.0))
    said: list[str] = []
    found = plan_run(small_recipe(), tmp_path / "run", say=said.append)
    grading, training, *_ = found.stages
    assert grading.rate is not None
    assert (grading.rate.basis, training.rate and training.rate.basis) == (ON_THE_SPOT, STATED)
    assert any(line.startswith("grading a few statements, at most ") for line in said)
    assert any("statements a second (measured just now, with this model on this machine)" in n for n in found.notes)
    monkeypatch.setattr("sftknow.run.estimating.free_memory", lambda: 10**6)
    found = plan_run(small_recipe(), tmp_path / "run")
    assert found.stages[0].rate is not None
    assert found.stages[0].rate.basis == STATED
    assert any("nothing was tried with it" in note for note in found.notes)
    assert any("assumed efficiency 15% in grading, 35% in training, 15% in evaluation;" in note for note in found.notes)


def test_training_and_scoring_are_estimated_from_a_pass_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sftknow.run.calibrating.SMALL", {"cpu": 0})
    monkeypatch.setattr("sftknow.run.grading.seconds_each", lambda *_, **__: 0.1)
    monkeypatch.setattr("sftknow.run.estimating.matrix_rate", lambda *_: 4e10)
    seconds = {}
    for rate in (1e10, 2e10):
        monkeypatch.setattr("sftknow.run.estimating.pass_rate", lambda *_, rate=rate: rate)
        found = plan_run(small_recipe(), tmp_path / "run")
        assert any(f"does {rate / 1e9:.0f}, {rate / 4e10:.0%} of it (measured just now)" in n for n in found.notes)
        assert any("15% in grading (training and evaluation: that of the pass)" in note for note in found.notes)
        seconds[rate] = {stage.name: stage.rate.each for stage in found.stages if stage.rate}
    for stage in ("training", "evaluation"):
        assert seconds[1e10][stage] == pytest.approx(2 * seconds[2e10][stage])


def test_a_pass_of_the_model_is_measured(tiny_model: Path) -> None:
    assert pass_rate(ModelRef(path=str(tiny_model)), "cpu", 4, seconds=0.05) > 1e6
