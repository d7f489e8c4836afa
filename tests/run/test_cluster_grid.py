"""Cells on a real Ray cluster: the run of one machine, byte for byte, whatever is lost on the way."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest

from sftknow.artifacts.stages import RunDirectory
from sftknow.cluster import Outcome
from sftknow.errors import ClusterError, RecipeError, RunError
from sftknow.run.cluster_grid import LOCKS, check_cluster, cluster_of
from sftknow.run.experiment import Experiment
from sftknow.run.shared_folder import MARK, SharedFolder
from tests.ray_cluster import ray_cluster
from tests.run.small_run import graded_copy, run, small_recipe
from tests.run.test_experiment import substance

RAY = ("grid.engine=ray", "grid.ray.gpus_per_replica=0")


def on_ray(out: Path, address: str, *more: str) -> list[str]:
    """Run the small experiment with its cells on a cluster; return what was said."""
    said: list[str] = []
    with RunDirectory(out) as directory:
        recipe = small_recipe(*RAY, f"grid.ray.address='{address}'", *more)
        Experiment(recipe, directory, say=said.append).run()
    return said


def same_but_for_the_recipe(one: Path, other: Path) -> None:
    found, expected = substance(one), substance(other)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == ["recipe.yaml"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    run(folder)
    return folder


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_nodes_give_the_bytes_of_one_machine(finished: Path, tmp_path: Path) -> None:
    out = graded_copy(finished, tmp_path / "run")
    with ray_cluster(1, 1) as cluster:
        said = on_ray(out, cluster.address)
        assert "Ray: 2 nodes, 2 workers of 1 CPU each" in said
        assert any(line.startswith("cell 2 of 2: b") and " is done (" in line for line in said)
        same_but_for_the_recipe(out, finished)
        assert not (out / MARK).exists()
        assert not (out / LOCKS).exists()

        again = on_ray(out, cluster.address)
        assert not [line for line in again if line.startswith("Ray:")], "what is done needs no cluster"

        # A cell whose folder is blocked fails alone, by name, and its trace is kept.
        shutil.rmtree(out / "models" / "b0-n8-s0")
        (out / "stages" / "models" / "b0-n8-s0.json").unlink()
        (out / "models" / ".b0-n8-s0.partial").write_text("in the way")
        with pytest.raises(RunError, match=r"1 of 2 models failed: b0-n8-s0 \(on node .*see failures/"):
            on_ray(out, cluster.address)
        assert "NotADirectoryError" in (out / "failures" / "b0-n8-s0.txt").read_text()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_lost_nodes_cell_goes_on_from_its_last_snapshot(finished: Path, tmp_path: Path) -> None:
    more = ("grid.sizes=[40]", "grid.buckets=[0]", "grid.seeds=[0,1]", "sft.batch_size=1", "tracking.save_steps=4")
    alone = graded_copy(finished, tmp_path / "alone")
    run(alone, *more)
    out = graded_copy(finished, tmp_path / "run")
    with ray_cluster(1, 1) as cluster:
        other = next(iter(cluster.worker_nodes))
        killed: list[str] = []

        def kill_once_there_is_a_snapshot() -> None:
            while not killed:
                time.sleep(0.05)
                for lock in (out / LOCKS).glob("*") if (out / LOCKS).is_dir() else ():
                    trainer = out / "models" / f".{lock.name}.trainer"
                    if lock.read_text() == other.node_id and list(trainer.glob("checkpoint-*/trainer_state.json")):
                        cluster.remove_node(other, allow_graceful=False)
                        killed.append(lock.name)
                        return

        watch = threading.Thread(target=kill_once_there_is_a_snapshot, daemon=True)
        watch.start()
        said = on_ray(out, cluster.address, *more)
        watch.join(timeout=60)
    assert killed, "the node was killed while it trained"
    line = next(line for line in said if f": {killed[0]} is done" in line)
    assert ", going on from step " in line
    assert any("was lost; what it was doing is done again" in line for line in said)
    same_but_for_the_recipe(out, alone)


@pytest.mark.ray
def test_a_node_that_does_not_see_the_run_directory_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The nodes of a test are one machine; one of them stands in for another by finding another word there.
    monkeypatch.setattr("sftknow.run.shared_folder.write_text", lambda path, text: path.write_text("other"))
    with ray_cluster(1, 1) as cluster:
        recipe = small_recipe(*RAY, f"grid.ray.address='{cluster.address}'")
        with pytest.raises(
            ClusterError, match=r"on node .* \(and 1 more nodes\): .* is not the run directory there; put"
        ):
            check_cluster(recipe, tmp_path)
    assert not (tmp_path / MARK).exists()


def test_the_look_at_the_run_directory(tmp_path: Path) -> None:
    folder = SharedFolder(path=tmp_path, word="abc")
    with pytest.raises(ClusterError, match="is not the run directory there"):
        folder()
    (tmp_path / MARK).write_text("abc")
    folder()
    (tmp_path / MARK).write_text("of another run")
    with pytest.raises(ClusterError, match="put it on a file system that all nodes share"):
        folder()


def test_one_device_for_all_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"take model\.device cuda in place of cuda:1"):
        check_cluster(small_recipe(*RAY, "model.device='cuda:1'"), tmp_path)


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        ([], None),
        (["model.device=cpu"], 0.0),
        (["accelerate.processes=2"], None),
        (["accelerate.processes=2", "model.device=cuda"], 2.0),
        (["accelerate.config=fsdp-8b"], 8.0),
        (["accelerate.config=fsdp-8b", "accelerate.processes=4"], 4.0),
        (["accelerate.config=fsdp-8b", "grid.ray.gpus_per_replica=16"], 16.0),
    ],
)
def test_a_cell_gets_a_gpu_for_each_process_of_its_training(settings: list[str], gpus: float | None) -> None:
    cluster = cluster_of(small_recipe(*RAY, "model.device=auto", "grid.ray.gpus_per_replica=null", *settings))
    assert cluster.gpus_per_replica == gpus


def test_a_failure_that_is_no_bug_keeps_no_trace(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as directory:
        experiment = Experiment(small_recipe(), directory, say=lambda line: None)
        experiment._cluster_failure("b0-n8-s0", Outcome(index=0, failure="on node a: no model"))
        experiment._cluster_failure("b4-n8-s0", Outcome(index=1, failure="on node a: ZeroDivisionError", traceback="T"))
    assert experiment.failed["b0-n8-s0"] == "on node a: no model"
    assert experiment.failed["b4-n8-s0"].endswith("see failures/ in the run directory")
    assert [file.name for file in (tmp_path / "failures").iterdir()] == ["b4-n8-s0.txt"]
