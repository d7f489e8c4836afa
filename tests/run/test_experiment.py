from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from sftknow.artifacts.manifests import dataset_of_model
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.artifacts.scores import read_eval
from sftknow.artifacts.stages import RunDirectory
from sftknow.checkpoints.deltas import materialize
from sftknow.cli.run import what_next
from sftknow.errors import RunError
from sftknow.evaluation.harness import Harness
from sftknow.models import loading as models
from sftknow.records import BUCKETS, SPLITS, ModelRef
from sftknow.resources import lab_folder
from sftknow.run.checks import check_graded
from sftknow.run.comparing import compare_models
from sftknow.run.experiment import Experiment
from sftknow.run.plan_text import plan_text
from sftknow.run.planning import plan_run
from sftknow.run.python import read_run
from sftknow.run.rates import IN_THIS_RUN
from sftknow.run.standing import standing
from sftknow.run.stored_cells import store_small
from tests.run.small_run import graded_copy, run, small_recipe

ROOT = Path(__file__).resolve().parents[2]


def substance(folder: Path) -> dict[str, bytes]:
    """What a run found, byte by byte: without times and without the pictures."""
    kept = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink() or not path.is_file() or name.startswith(("stages/", "report/", ".lock")):
            continue
        kept[name] = path.read_bytes()
    return kept


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    run(folder)
    return folder


def test_every_stage_left_its_artifacts(finished: Path) -> None:
    for name in (
        "recipe.yaml", "provenance.json", "facts/exposures.parquet", "mastery/dataset/sftknow.json",
        "models/base/config.json", "models/b0-n8-s0/model.safetensors", "models/b0-n8-s0/sftknow.json",
        "models/b4-n8-s0/loss.json", "evaluation/base/scores.json", "evaluation/b4-n8-s0/questions.parquet",
        "divergence/b0-n8-s0/divergence.json", "changes/b0-n8-s0/plan.json", "choice.json", "report/report.html",
        "report/results.json",
    ):  # fmt: skip
        assert (finished / name).is_file(), name
    choice = json.loads((finished / "choice.json").read_text())
    for level in ("5pct", "40pct"):
        restored = finished / "restored" / choice["cell"] / level
        assert (restored / "model.safetensors").is_file()
        assert (finished / "evaluation" / f"{choice['cell']}@{level}" / "scores.json").is_file()
    assert not list(finished.rglob("*.partial*"))


def test_every_model_names_the_graded_data(finished: Path) -> None:
    data = MasteryData(finished / "mastery" / "dataset")
    assert sum(data.count(split, bucket) for split in SPLITS for bucket in BUCKETS) == 120 + 3 * 30
    models = [path.parent for path in finished.glob("models/*/sftknow.json")]
    models += [path.parent for path in finished.glob("restored/*/*/sftknow.json")]
    assert len(models) == 1 + 2 + 2
    for model in models:
        named = dataset_of_model(model)
        assert named is not None
        assert MasteryData(named[0]).fingerprint == data.fingerprint
        if model.name != "base":
            manifest = json.loads((model / "sftknow.json").read_text())
            assert len(manifest["sft"]["fact_ids"]) == 8, "needed to score a model on its own training facts"


def test_scores_are_made_of_the_single_answers(finished: Path) -> None:
    import pyarrow.parquet as pq

    scores = json.loads((finished / "evaluation" / "base" / "scores.json").read_text())
    answers = pq.read_table(finished / "evaluation" / "base" / "questions.parquet").to_pylist()
    for entry in scores["metrics"]:
        split, _, bucket = entry["task"].removeprefix("cbqa_mastery_").partition("_bucket_")
        if bucket:
            chosen = [a[entry["metric"]] for a in answers if a["split"] == split and a["bucket"] == int(bucket)]
            assert entry["count"] == len(chosen)
            assert entry["value"] == pytest.approx(sum(chosen) / len(chosen))


def test_a_second_start_does_nothing_twice(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "stages").rglob("*.json")}
    assert before
    said: list[str] = []
    with RunDirectory(finished) as directory:
        Experiment(small_recipe(), directory, say=said.append).run()
    assert {path: path.stat().st_mtime_ns for path in (finished / "stages").rglob("*.json")} == before
    assert not [line for line in said if line.startswith(("grading", "fine-tuning", "evaluating", "restoring"))]


def test_what_a_run_found_is_a_table_in_python(finished: Path) -> None:
    found = read_run(finished)
    choice = json.loads((finished / "choice.json").read_text())
    assert found.recommended == choice["model"]
    assert found.headline() == found.sentences[0]
    table = found.to_pandas()
    assert {"base", "b0-n8-s0", choice["model"]} <= set(table["model"])
    assert found.report.is_file()
    cell, _, level = choice["model"].partition("@")
    folder = finished / "restored" / cell / level if level else finished / "models" / cell
    assert list(what_next(finished)) == [
        f"recommended model: {folder}",
        f"score it again: lm_eval --model hf --model_args pretrained={folder} --tasks cbqa_mastery",
    ]


def killed_at(point: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.run.small_run", str(folder), point], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def test_killed_while_grading(finished: Path, tmp_path: Path) -> None:
    killed_at("shard:2", tmp_path / "run")
    shards = tmp_path / "run" / "mastery" / "shards"
    assert len(list(shards.glob("*.parquet"))) == 2
    assert not (tmp_path / "run" / "mastery" / "dataset").exists()
    times = {path: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
    run(tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in times} == times, "finished shards are not done again"
    assert substance(tmp_path / "run") == substance(finished)


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    ["mastery", "models/b4-n8-s0", "evaluation/b0-n8-s0", "divergence", "changes/b4-n8-s0", "restored", "@40pct"],
)
def test_killed_in_any_stage(point: str, finished: Path, tmp_path: Path) -> None:
    killed_at(point, tmp_path / "run")
    run(tmp_path / "run")
    assert substance(tmp_path / "run") == substance(finished)


def test_a_changed_recipe_redoes_what_depends_on_it(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy, symlinks=True)
    said: list[str] = []
    loads: list[str] = []
    load = models.AutoModelForCausalLM.from_pretrained

    def counted(path: str, **options: object) -> object:
        loads.append(Path(path).name)
        return load(path, **options)

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", counted)
    with RunDirectory(copy) as directory:
        Experiment(small_recipe("sft.learning_rate=1e-4"), directory, say=said.append).run()
    assert not [line for line in said if line.startswith("grading")]
    assert not [line for line in said if line == "evaluating base"]
    assert [line for line in said if line.startswith("fine-tuning")] == ["fine-tuning b0-n8-s0", "fine-tuning b4-n8-s0"]
    first, second = [line for line in said if line.startswith("cell ")]
    assert first.startswith("cell 1 of 2: b0-n8-s0")
    assert re.fullmatch(r"cell 2 of 2: b4-n8-s0, (about|at least) .* left", second)
    best = json.loads((copy / "choice.json").read_text())["cell"]
    other = next(name for name in ("b0-n8-s0", "b4-n8-s0") if name != best)
    # The base to train from and to diverge from; a cell to score and diverge; the best once more to restore and once
    # more to grade.
    assert Counter(loads) == {"model": 2, best: 3, other: 1}
    assert (copy / "models/b0-n8-s0/model.safetensors").read_bytes() != (
        finished / "models/b0-n8-s0/model.safetensors"
    ).read_bytes()


def test_what_the_buckets_cannot_fill_is_left_out_and_told(finished: Path, tmp_path: Path) -> None:
    copy = graded_copy(finished, tmp_path / "run")
    said: list[str] = []
    with RunDirectory(copy) as directory:
        page = Experiment(small_recipe("grid.sizes=[5000]"), directory, say=said.append).run()
        assert page.is_file()
        told = [line for line in said if line.startswith("left out: b0-n5000-s0, b4-n5000-s0; there are ")]
        assert len(told) == 2, "after the grading, and once more at the end as no model was trained"
        advice = told[0].partition("--set ")[2]
        assert re.fullmatch(r"grid\.sizes=\[\d+\]", advice)
        fitting = Experiment(small_recipe(advice), directory, say=said.append).bench
        assert [cell.bucket for cell in fitting.cells] == [0, 4]
        partly = Experiment(small_recipe("grid.sizes=[8,5000]"), directory, say=said.append).bench
        assert [cell.name for cell in partly.cells] == ["b0-n8-s0", "b4-n8-s0"]
        assert [cell.name for cell in standing(partly).cells] == ["b0-n8-s0", "b4-n8-s0"]


def test_a_bucket_without_test_facts_is_not_measured(finished: Path, tmp_path: Path) -> None:
    copy = graded_copy(finished, tmp_path / "run")
    manifest = copy / "mastery" / "dataset" / "sftknow.json"
    content = json.loads(manifest.read_text())
    content["counts"]["test"]["bucket_4"] = 0
    manifest.write_text(json.dumps(content))
    said: list[str] = []
    with RunDirectory(copy) as directory:
        bench = Experiment(small_recipe(), directory, say=said.append).bench
        check_graded(bench)
        assert max(bench.divergence.buckets) < 4
        assert f"--set divergence.buckets=[{','.join(map(str, bench.divergence.buckets))}]" in said[-1]
        assert bench.recipe.divergence.buckets == (0, 1, 2, 3, 4)


def test_restored_checkpoints_give_the_scores_of_the_model_in_memory(finished: Path) -> None:
    cell = json.loads((finished / "choice.json").read_text())["cell"]
    harness = Harness(finished / "mastery" / "dataset", splits=("dev", "test", "testood"), batch_size=128)
    for level in ("5pct", "40pct"):
        checkpoint = ModelRef(path=str(finished / "restored" / cell / level), dtype="float32")
        fresh = harness.score_path(checkpoint, name=f"{cell}@{level}")
        kept = read_eval(finished / "evaluation" / f"{cell}@{level}")
        assert fresh.questions == kept.questions
        assert fresh.metrics == kept.metrics


@pytest.mark.slow
def test_small_storage_changes_nothing_but_the_weights_files(finished: Path, tmp_path: Path) -> None:
    run(graded_copy(finished, tmp_path / "run"), "grid.storage=delta", "restore.cells=all")
    small, full = substance(tmp_path / "run"), substance(finished)
    assert not list((tmp_path / "run" / "models").glob("b[0-9]*/*.safetensors"))
    assert not list((tmp_path / "run" / "models").glob(".*"))
    for name in ("b0-n8-s0", "b4-n8-s0"):
        materialize(lab_folder() / "model", tmp_path / "run" / "models" / name, tmp_path / name)
        for path in sorted((finished / "models" / name).iterdir()):
            assert (tmp_path / name / path.name).read_bytes() == path.read_bytes()
    others = [name for name in full if not name.startswith("models/") and name != "recipe.yaml"]
    assert {name: small[name] for name in others} == {name: full[name] for name in others}
    said: list[str] = []
    with RunDirectory(tmp_path / "run") as directory:
        recipe = small_recipe("grid.storage=delta", "restore.cells=all")
        Experiment(recipe, directory, say=said.append).run()
    assert not [line for line in said if line.startswith(("grading", "fine-tuning", "evaluating", "restoring"))]


def test_a_failing_cell_does_not_take_the_others_down(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy, symlinks=True)
    # A rate at which the second cell diverges would be luck; a file in the place of its folder is not.
    shutil.rmtree(copy / "models" / "b0-n8-s0")
    (copy / "stages" / "models" / "b0-n8-s0.json").unlink()
    (copy / "models" / ".b0-n8-s0.partial").write_text("in the way")
    shutil.rmtree(copy / "report")
    with RunDirectory(copy) as directory, pytest.raises(RunError, match=r"1 of 2 models failed: b0-n8-s0 \(") as told:
        Experiment(small_recipe(), directory, say=lambda text: None).run()
    assert "start the same command again" in str(told.value)
    assert (copy / "report" / "report.html").is_file()
    assert (copy / "failures" / "b0-n8-s0.txt").is_file()
    (copy / "models" / ".b0-n8-s0.partial").unlink()
    run(copy)
    shutil.rmtree(copy / "failures")
    assert substance(copy) == substance(finished)


def test_a_dry_run_tells_what_is_done_and_touches_nothing(finished: Path) -> None:
    def listing() -> dict[Path, int]:
        return {path: path.lstat().st_mtime_ns for path in finished.rglob("*")}

    before = listing()
    text = plan_text(plan_run(small_recipe(), finished, measure=lambda bench: {}))
    assert "already there: graded, 2 of 2 cells done, 2 of 2 levels restored" in text
    assert text.count("  done  ") == 6
    more = plan_run(small_recipe("grid.seeds=[0,1]"), finished, measure=lambda bench: {})
    assert "graded, 2 of 4 cells done" in plan_text(more)
    training = next(stage for stage in more.stages if stage.name == "training")
    assert training.work == "2 of 4 cells, 16 examples, 2 steps"
    assert training.rate is not None
    assert training.rate.basis == IN_THIS_RUN
    assert listing() == before


def test_two_processes_cannot_share_a_run(finished: Path) -> None:
    with RunDirectory(finished), pytest.raises(RunError, match="another process"), RunDirectory(finished):
        pass


def test_compare_finds_the_evaluation_of_a_stored_cell_and_of_a_restored_folder(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sftknow.evaluation.harness.Harness.score_path", lambda *_, **__: pytest.fail("scored again"))
    run_folder = tmp_path / "run"
    shutil.copytree(finished, run_folder, symlinks=True)
    cell = json.loads((finished / "choice.json").read_text())["cell"]
    with RunDirectory(run_folder) as directory:
        base = Experiment(small_recipe(), directory, say=lambda text: None).bench.base
    store_small(base, run_folder / "models" / cell)
    restored = run_folder / "restored" / cell / "5pct"
    found = compare_models(str(run_folder / "models" / cell), str(restored), resamples=100)
    assert (found.a, found.b) == (cell, f"{cell}@5pct")
    monkeypatch.undo()
    # Other weights in its place: the evaluation there is not theirs.
    (restored / "model.safetensors").unlink()
    shutil.copyfile(run_folder / "restored" / cell / "40pct" / "model.safetensors", restored / "model.safetensors")
    other = compare_models(f"{cell}@40pct", str(restored), run=run_folder, resamples=100)
    assert [q.a.output for q in other.questions] == [q.b.output for q in other.questions]


def test_restored_folders_of_a_run_have_their_card(finished: Path) -> None:
    cell = json.loads((finished / "choice.json").read_text())["cell"]
    for level in ("5pct", "40pct"):
        card = (finished / "restored" / cell / level / "README.md").read_text()
        assert level.replace("pct", "%") in card


@pytest.mark.parametrize("name", ["identity_by_time", "other"])
def test_a_run_that_an_earlier_version_began_goes_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Weights of more than 1 GiB a file were known by size and time; a run that says so keeps to that."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy, symlinks=True)
    noted = json.loads((copy / "provenance.json").read_text())
    was = noted["base"]["weights_sha256"]
    noted["base"]["weights_sha256"] = "before"
    (copy / "provenance.json").write_text(json.dumps(noted))
    monkeypatch.setattr("sftknow.run.workbench.identity_by_time", lambda folder: "before" if name != "other" else None)
    with RunDirectory(copy) as directory:
        base = Experiment(small_recipe(), directory, say=lambda text: None).bench.base
    assert base.sha256 == (was if name == "other" else "before")
