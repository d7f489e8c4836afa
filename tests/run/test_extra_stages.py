"""Stages that a recipe asks for: whole layers restored (Table 11) and other tasks (Table 5), within a run."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest

from sftknow.artifacts.general_scores import read_general
from sftknow.artifacts.scores import read_eval
from sftknow.artifacts.stages import RunDirectory
from sftknow.checkpoints.deltas import materialize
from sftknow.errors import GeneralTaskError, RecipeError
from sftknow.evaluation.harness import Harness
from sftknow.parameters.change import analyse
from sftknow.parameters.restore import restore_layers, restore_levels
from sftknow.parameters.tables import read_plan
from sftknow.records import EvalRun, ModelRef, TrainedModel
from sftknow.report.collect import results
from sftknow.run import checkpoint_pairs
from sftknow.run.cell_steps import CellSteps
from sftknow.run.controls import control_names
from sftknow.run.experiment import Experiment
from sftknow.run.workbench import Workbench
from sftknow.training.recipe import TrainingOptions
from tests.evaluation.general.stand_in import write_stand_in
from tests.run.small_run import run, small_recipe

CELL = "b4-n8-s0"
RANGES = ("0-2", "3-3")


def settings(data: Path) -> tuple[str, ...]:
    return (
        "facts.limit=80",
        "grading.templates=[0,1]",
        "evaluation.splits=[test]",
        "grid.buckets=[4]",
        "grid.storage=delta",
        "sft.learning_rate=0.001",
        "restore.levels=['5%']",
        "restore.layers=3",
        f"restore.layer_cells=[{CELL}]",
        "general.tasks=[xsum]",
        f"general.data={{xsum: {data / 'xsum'}}}",
        "general.size=8",
        "general.article_words=10",
        "general.limit=2",
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with both, and the data of the other task beside it. Read only."""
    folder = tmp_path_factory.mktemp("extra")
    write_stand_in(folder / "data", train=10, test=3)
    run(folder / "run", *settings(folder / "data"))
    return folder / "run"


def answers(scores: EvalRun) -> list[tuple[str, str]]:
    return [(question.fact_id, question.output) for question in scores.questions]


def test_layers_in_memory_are_the_checkpoints_layers(finished: Path, tmp_path: Path) -> None:
    base, tuned = finished / "models" / "base", tmp_path / "tuned"
    materialize(base, finished / "models" / CELL, tuned)
    outputs = {text: tmp_path / text for text in RANGES}
    assert all(restored.restored for restored in restore_layers(base, tuned, outputs))
    harness = Harness(finished / "mastery" / "dataset", splits=("test",), batch_size=128)
    found = {}
    for text, folder in outputs.items():
        found[text] = read_eval(finished / "evaluation" / f"{CELL}@layers-{text}")
        assert answers(found[text]) == answers(harness.score_path(ModelRef(path=str(folder)), name="written"))
    plain = read_eval(finished / "evaluation" / CELL)
    ours = {question.fact_id: question.output for question in plain.questions if question.split == "test"}
    assert answers(found["0-2"]) != answers(found["3-3"])
    assert dict(answers(found["0-2"])) != ours
    assert {path.name for path in (finished / "restored" / CELL).iterdir()} == {"5pct"}, "scores only"


def test_the_report_shows_both(finished: Path) -> None:
    results: Any = json.loads((finished / "report" / "results.json").read_text())
    layers = results["tables"]["table-11-layer-ranges"]
    assert [column.partition(": ")[2] for column in layers["columns"][1:]] == ["none (%)", "0-2 (%)", "3 (%)"]
    values = [read_eval(finished / "evaluation" / f"{CELL}{part}").value("cbqa_mastery_test").value
              for part in ("", "@layers-0-2", "@layers-3-3")]  # fmt: skip
    assert [entry["value"] for entry in layers["rows"][0][1:]] == pytest.approx([100 * value for value in values])
    tasks = results["tables"]["table-5-other-tasks"]
    assert [row[0]["text"] for row in tasks["rows"]] == ["base model, untrained", "nothing", "5%"]
    assert not [part for part in results["unasked"] if "Table 5" in part["what"] or "Table 11" in part["what"]]


def test_ten_numbers_are_the_artifacts(finished: Path) -> None:
    """The numbers of the page of a real run, worked out anew from what its stages wrote."""
    tables: Any = json.loads((finished / "report" / "results.json").read_text())["tables"]

    def shown(table: str, row: str, column: str, key: str = "value") -> float:
        found = [line for line in tables[table]["rows"] if line[0]["text"].startswith(row)]
        assert len(found) == 1, (table, row)
        return float(found[0][tables[table]["columns"].index(column)][key])

    def questions(model: str) -> pd.DataFrame:
        return pd.read_parquet(finished / "evaluation" / model / "questions.parquet").set_index("fact_id").sort_index()

    def mean(model: str) -> float:
        return 100 * float(questions(model).groupby("bucket")["acc"].mean().mean())

    graded = [pd.read_parquet(path) for path in sorted((finished / "mastery/dataset/test").glob("bucket_*.parquet"))]
    assert shown("table-1-distribution", "in-domain test", "Bucket 0 (facts)") == len(graded[0])  # 1
    assert shown("table-1-distribution", "in-domain test", "All (facts)") == sum(map(len, graded))  # 2
    base, tuned, restored = "base", CELL, f"{CELL}@5pct"
    bucket = int(questions(base)["bucket"].max())
    here = questions(tuned).query("bucket == @bucket")["acc"].mean()
    two = f"In-domain test: Bucket {bucket} (%)"
    assert shown("table-2-accuracy", "bucket 4", two) == pytest.approx(100 * here)  # 3
    assert shown("table-2-accuracy", "nothing", "In-domain test: Mean (%)") == pytest.approx(mean(base))  # 4
    four = "Trained on: bucket 4, 8 facts (%)"
    assert shown("table-4a-restoration-test", "5%", four) == pytest.approx(mean(restored))  # 5
    gain = shown("table-4a-restoration-test", "5%", four, "difference")
    assert gain == pytest.approx(mean(restored) - mean(tuned), abs=1e-9)  # 6
    change = json.loads((finished / "changes" / CELL / "changes.json").read_text())
    level = next(item for item in change["levels"] if item["level"] == "5%")
    three = "Share of the change (%) in the top …: 5%"
    assert shown("table-3-concentration", "bucket 4", three) == pytest.approx(100 * level["concentration"])  # 7
    assert shown("table-f-changed", "bucket 4", "Changed") == change["changed"]  # 8
    examples = pd.read_parquet(finished / "divergence" / CELL / "examples.parquet")
    moved = examples[examples["bucket"] == 4]["kl"].mean()
    nats = "Ten likeliest tokens: tuned ‖ base (nats)"
    assert shown("table-e-divergence", "bucket 4", nats) == pytest.approx(moved)  # 9
    rouge = read_general(finished / "ability" / "xsum" / "scores" / "5pct" / "xsum.json").metrics[0].value
    assert shown("table-5-other-tasks", "5%", "XSum: ROUGE-1 (%)") == pytest.approx(100 * rouge)  # 10


def test_a_second_start_does_nothing_and_a_lost_range_is_scored_again(finished: Path) -> None:
    lost = finished / "stages" / "evaluation" / f"{CELL}@layers-3-3.json"
    lost.unlink()
    said: list[str] = []
    with RunDirectory(finished) as directory:
        recipe = small_recipe(*settings(finished.parent / "data"))
        Experiment(recipe, directory, say=said.append).run()
    assert [line for line in said if "layers" in line] == [f"restoring layers 3-3 of {CELL}, each alone"]
    assert not [line for line in said if line.startswith(("xsum", "evaluating", "fine-tuning", "grading:"))]
    assert lost.is_file()


def test_controls_are_scored_as_if_they_were_written(finished: Path, tmp_path: Path) -> None:
    """Random restoration of the same share against a checkpoint of it; a lost control alone is scored again."""
    copy = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    said: list[str] = []

    def score() -> list[str]:
        said.clear()
        with RunDirectory(copy) as directory:
            bench = Workbench(small_recipe(*settings(finished.parent / "data")), directory, said.append)
            CellSteps(bench, bench.cells[0]).score_controls("5%", 2)
        return said

    assert score() == [f"evaluating {CELL} with 6 controls of 5%"]
    names = {path.name.partition("@")[2] for path in (copy / "evaluation").glob(f"{CELL}@*-*pct-*")}
    assert names == {name for name, *_ in control_names("5%", 2)}
    base, tuned = copy / "models" / "base", tmp_path / "tuned"
    materialize(base, copy / "models" / CELL, tuned)
    plan = analyse(base, tuned, ("5%",), strategy="random", seed=1).plan
    restore_levels(base, tuned, plan, {"5%": tmp_path / "random"})
    harness = Harness(copy / "mastery" / "dataset", splits=("test",), batch_size=128)
    written = harness.score_path(ModelRef(path=str(tmp_path / "random")), name="written")
    assert answers(read_eval(copy / "evaluation" / f"{CELL}@random-share-5pct-1")) == answers(written)
    assert score() == [], "all is there"
    (copy / "stages" / "evaluation" / f"{CELL}@blend-share-5pct-0.json").unlink()
    assert len(score()) == 1
    frame = results(copy)
    mine = frame[(frame["control"] == "random-distance").fillna(False) & frame["bucket"].isna()]
    assert set(mine["level"]) == {"5%"}
    assert set(mine["model"]) == {f"{CELL}@random-distance-5pct-{draw}" for draw in (0, 1)}
    levels = frame[frame["control"].isna() & (frame["level"] == "5%").fillna(False) & (frame["task"] == "cbqa_mastery")]
    assert set(levels["model"]) == {f"{CELL}@5pct"}


@pytest.mark.parametrize(
    ("setting", "error", "words"),
    [
        ("general.data={xsum: /no/such/folder}", GeneralTaskError, "general.data.xsum: there is no folder"),
        ("general.data={gsm8k: /tmp}", GeneralTaskError, "xsum"),
        ("general.tasks=[sums]", RecipeError, "general.tasks"),
        ("general.size=0", RecipeError, "general.size"),
        ("restore.layers=-1", RecipeError, "restore.layers"),
        ("restore.controls=-1", RecipeError, "restore.controls"),
    ],
)
def test_refused_before_any_work(tmp_path: Path, setting: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        run(tmp_path / "run", "general.tasks=[xsum]", setting)
    assert not (tmp_path / "run" / "mastery").exists()


def test_a_cell_that_is_not_in_the_grid_is_named(finished: Path) -> None:
    recipe = small_recipe(*settings(finished.parent / "data"), "restore.layer_cells=[b1-n8-s0]")
    with RunDirectory(finished) as directory, pytest.raises(RecipeError, match=r"restore\.layer_cells: b1-n8-s0"):
        Experiment(recipe, directory, say=lambda text: None).run()


def test_other_tasks_are_trained_and_analysed_as_the_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes, snapshots, trackers, region and order hold for Table 5, too; they are the recipe's."""
    write_stand_in(tmp_path / "data", train=10, test=3)
    recipe = small_recipe(
        *settings(tmp_path / "data"),
        "accelerate.processes=2",
        "tracking.save_steps=3",
        "parameters.region=attention",
        "parameters.strategy=bottom",
        "parameters.epsilon=0.5",
        "parameters.arithmetic=bfloat16",
    )
    launched: list[dict[str, Any]] = []
    analysed: list[dict[str, Any]] = []

    def train(work: Any, base: Any, material: Any, **given: Any) -> TrainedModel:
        launched.append(given)
        again = pickle.loads(pickle.dumps(material))
        assert (again.harness.task.name, again.size, again.seed) == ("xsum", 8, 0)
        return cast(TrainedModel, work(base, again, given["out"], recipe=given["recipe"], options=TrainingOptions()))

    def analyse(base: Path, tuned: Path, levels: Any, **order: Any) -> Any:
        analysed.append(order)
        return really(base, tuned, levels, **order)

    really = checkpoint_pairs.analyse
    monkeypatch.setattr("sftknow.run.training.train_launched", train)
    monkeypatch.setattr(checkpoint_pairs, "analyse", analyse)
    with RunDirectory(tmp_path / "run") as directory:
        Experiment(recipe, directory, say=lambda text: None).other_tasks()
        Experiment(recipe, directory, say=lambda text: pytest.fail(text)).other_tasks()
    (given,) = launched
    assert given["section"].processes == 2
    assert given["options"].save_steps == 3
    (order,) = analysed
    wanted = {"region": "attention", "strategy": "bottom", "epsilon": 0.5, "arithmetic": "bfloat16"}
    assert {key: order[key] for key in wanted} == wanted
    ability = tmp_path / "run" / "ability"
    assert read_plan(ability / "xsum" / "changes" / "plan.json").region == "attention"
    assert json.loads((ability / "stages" / "xsum" / "changes.json").read_text())["inputs"]["order"] == wanted


def test_the_key_of_what_was_made_by_the_defaults_is_the_old_one(finished: Path) -> None:
    marks = finished / "ability" / "stages" / "xsum"
    assert set(json.loads((marks / "changes.json").read_text())["inputs"]) == {"tuned", "levels"}
    assert set(json.loads((marks / "scores" / "5pct.json").read_text())["inputs"]) == {"tuned", "level", "asked"}
