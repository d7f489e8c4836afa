"""The arena: what is measured of each model, what a kill costs, and that a level in memory is the one on disk."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sftknow.artifacts.arena import NOTHING, arena_file, read_arena
from sftknow.artifacts.files import read_json
from sftknow.artifacts.stages import RunDirectory
from sftknow.errors import RunError
from sftknow.parameters.candidates import Candidate, Candidates, write_candidate
from sftknow.parameters.placing import as_far, place_
from sftknow.recipes.load import load_recipe
from sftknow.recipes.schema import Recipe
from sftknow.run import beside
from sftknow.run.arena import RANKED
from sftknow.run.arena_asking import Asked, Examiner, question_scores, spread
from sftknow.run.cell_steps import CellSteps
from sftknow.run.cells import Cell
from sftknow.run.experiment import Experiment
from sftknow.run.stored_cells import whole
from sftknow.run.workbench import Workbench
from sftknow.training.strategies import STRATEGIES, Strategy

pytestmark = pytest.mark.slow

SETTINGS = (
    "facts.limit=120",
    "grading.samples=1",
    "grading.shard_size=64",
    "grid.buckets=[]",
    "grid.sizes=[8]",
    "grid.mixed=true",
    "grid.strategies=[l2-sp]",
    "grid.storage=delta",
    "sft.epochs=4",
    "evaluation.limit=4",
    "evaluation.examples=0",
    "evaluation.regrade=0",
    "restore.cells=[]",
    "parameters.levels=['20%']",
    "divergence.bootstrap=100",
    "arena.of=[mixed]",
    "arena.after=[relative,per-tensor,interpolation]",
    "arena.levels={relative: ['20%','60%'], per-tensor: ['40%'], interpolation: ['50%','75%']}",
    "arena.ranking_of=[mixed]",
    "arena.ranking=['20%']",
    "arena.statements=1",
)


def recipe(*more: str) -> Recipe:
    return load_recipe("lab", [*SETTINGS, *more])


def run(out: Path, *more: str, said: list[str] | None = None) -> Path:
    with RunDirectory(out) as directory:
        return Experiment(recipe(*more), directory, say=(said if said is not None else []).append).run()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small arena that nobody disturbed. Read only."""
    out = tmp_path_factory.mktemp("arena") / "run"
    run(out)
    return out


def test_every_model_is_measured_alike(finished: Path) -> None:
    found = read_arena(finished)
    assert list(found) == ["base", "l2-sp-n8-s0", "mixed-n8-s0"]
    (base,) = found["base"]
    assert (base.strategy, base.size, base.seed, base.kl, base.distance) == ("base", 8, 0, 0.0, 0.0)
    plain = {(entry.after, entry.level): entry for entry in found["mixed-n8-s0"]}
    trained = plain[NOTHING, None]
    assert (trained.strategy, trained.size, trained.chosen, trained.relative_seconds) == ("plain", 8, True, 1.0)
    assert trained.scores.keys() == base.scores.keys() >= {"learned", "ood", "dev", "kept/statements/4"}
    assert {name: asked for name, (_, asked) in trained.scores.items()} == {
        name: asked for name, (_, asked) in base.scores.items()
    }
    assert trained.kl is not None
    assert trained.kl > 0
    assert 0 < trained.changed <= 1
    assert trained.seconds > 0
    for method, levels in {"relative": 2, "per-tensor": 1, "interpolation": 2}.items():
        competed = [e for (after, level), e in plain.items() if after == method and "dev" in e.scores]
        assert len(competed) == levels
        assert sum(entry.chosen for entry in competed) == 1
        full = [entry for entry in competed if "ood" in entry.scores]
        assert len(full) == (2 if method == "interpolation" else 1), "all levels of plain's line"
        assert all(entry.distance < trained.distance for entry in competed)
        assert all(entry.seconds >= trained.seconds for entry in competed)
    l2sp = {(entry.after, entry.level): entry for entry in found["l2-sp-n8-s0"]}
    assert l2sp[NOTHING, None].options == {"learning_rate": None, "strength": 0.1}
    assert l2sp[NOTHING, None].relative_seconds == pytest.approx(
        l2sp[NOTHING, None].seconds / trained.seconds, abs=1e-3
    )
    assert not [level for _, level in l2sp if level and level.startswith("as ")], "only plain models are ranked"


def test_the_ranking_is_compared_at_equal_shares_and_distances(finished: Path) -> None:
    found = {(entry.after, entry.level): entry for entry in read_arena(finished)["mixed-n8-s0"]}
    first = found[RANKED[0], "20%"]
    for method in RANKED[1:]:
        assert {"learned", "kept/statements/4"} <= found[method, "20%"].scores.keys()
        as_much = found[method, "as 20%"]
        assert as_much.scores.keys() >= {"learned", "kept/statements/4"}
        # Changes of a single bit in bfloat16 cannot be halved, so that an interpolation goes in steps.
        near = 0.05 if method == "interpolation" else 2e-3
        assert as_much.distance == pytest.approx(first.distance, rel=near), method
        assert not as_much.chosen


def test_a_level_in_memory_is_the_one_that_is_written(finished: Path, tmp_path: Path) -> None:
    with RunDirectory(finished) as directory:
        bench = Workbench(recipe(), directory, lambda line: None)
        steps = CellSteps(bench, Cell(bucket=None, size=8, seed=0))
        with whole(bench.base, steps.folder) as tuned:
            for entry in read_arena(finished)["mixed-n8-s0"]:
                if not (entry.chosen and entry.level):
                    continue
                candidate = Candidate(entry.after, entry.level)
                candidates = Candidates(Path(bench.base.ref.path), tuned, [candidate], seed=0)
                out = tmp_path / candidate.name.replace(" ", "-")
                write_candidate(candidates, candidates.maker(candidate), out)
                examiner = Examiner(bench, *bench.asked(out))
                scores = {
                    **question_scores(examiner.questions("dev", name="x")),
                    **question_scores(examiner.questions("test", "testood", name="x")),
                    **examiner.statements(Asked(bench).training((None, 8, 0))),
                }
                assert scores == dict(entry.scores), candidate.name
                assert examiner.divergence(bench.base_logits) == pytest.approx(entry.kl, rel=1e-6)


def test_a_second_start_measures_nothing_and_a_lost_file_is_made_again(finished: Path) -> None:
    file = arena_file(finished, "mixed-n8-s0")
    before, content = {p: p.stat().st_mtime_ns for p in finished.glob("arena/**/*.json")}, read_json(file)
    said: list[str] = []
    run(finished, said=said)
    assert {p: p.stat().st_mtime_ns for p in finished.glob("arena/**/*.json")} == before
    assert not [line for line in said if line.startswith(("the arena", "asking", "fine-tuning"))]
    file.unlink()
    run(finished)
    assert read_json(file) == content


def test_a_killed_arena_goes_on_with_the_level_that_it_was_at(finished: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import sftknow.run.arena as arena\n"
        "from tests.run.test_arena import run\n"
        "get, done = arena._Kept.get, []\n"
        "def dying(self, name, measure):\n"
        "    done.append(name)\n"
        "    if len(done) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return get(self, name, measure)\n"
        "arena._Kept.get = dying\n"
        "run(Path(sys.argv[1]))\n"
    )
    out = tmp_path / "run"
    shutil.copytree(finished, out, symlinks=True)
    for name in ("arena", "stages/arena"):
        shutil.rmtree(out / name)
    died = subprocess.run([sys.executable, "-c", script, str(out)], cwd=Path(__file__).parents[2], check=False)
    assert died.returncode == -signal.SIGKILL
    kept = {p: p.stat().st_mtime_ns for p in out.glob("arena/*/measured/*.json")}
    assert len(kept) == 3
    run(out)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept

    def substance(folder: Path) -> object:
        found = read_arena(folder).items()
        return {name: [replace(e, seconds=0, relative_seconds=None) for e in entries] for name, entries in found}

    assert substance(out) == substance(finished)


@pytest.fixture
def broken() -> Iterator[str]:
    """A strategy whose package is missing."""

    class Broken(Strategy):
        def trainer_settings(self) -> dict[str, object]:
            raise RunError("the package for it is not installed; pip install it")

    STRATEGIES.register("broken")(Broken)
    yield "broken"
    STRATEGIES.remove("broken")


def test_a_strategy_that_fails_is_told_and_left_out(finished: Path, tmp_path: Path, broken: str) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out, symlinks=True)
    with pytest.raises(RunError, match=r"broken-n8-s0 \(the package for it is not installed; pip install it\)"):
        run(out, f"grid.strategies=[l2-sp,{broken}]")
    assert list(read_arena(out)) == ["base", "l2-sp-n8-s0", "mixed-n8-s0"]
    assert (out / "report" / "report.html").is_file()


def test_a_strength_is_found_for_a_distance(finished: Path) -> None:
    with RunDirectory(finished) as directory:
        bench = Workbench(recipe(), directory, lambda line: None)
        with whole(bench.base, finished / "models" / "mixed-n8-s0") as tuned:
            candidates = Candidates(Path(bench.base.ref.path), tuned, [])
            all_of_it = place_(None, candidates, None).distance
            for method, share in (("smallest", 0.9), ("absolute", 0.8), ("per-tensor", 0.95)):
                candidate, maker = as_far(candidates, method, all_of_it * share)
                assert place_(None, candidates, maker).distance == pytest.approx(all_of_it * share, rel=2e-3)
                assert maker.candidate == candidate
            nowhere, _ = as_far(candidates, "absolute", 0.0)
            assert float(nowhere.strength[:-1]) > 99.9, "embeddings are not in its region, so that it cannot"


def test_statements_are_evenly_spread() -> None:
    assert spread(21, 2) == [0, 10]
    assert spread(1, 2) == [0]
    assert spread(3, 3) == [0, 1, 2]


def test_processes_beside_one_another_make_what_one_makes(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out, "grid.processes=2")
    assert list(read_arena(out)) == list(read_arena(finished))
    for name in ("mixed-n8-s0", "l2-sp-n8-s0"):
        assert json.loads((out / "models" / name / "sftknow.json").read_text())["sft"]["size"] == 8


def test_a_process_that_dies_costs_its_cell_alone(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out, symlinks=True)
    with RunDirectory(out) as directory:
        bench = Workbench(recipe("grid.processes=2", "grid.seeds=[0,1,2]"), directory, lambda line: None)
        cells = [CellSteps(bench, cell) for cell in bench.cells]
        lost: dict[str, str] = {}
        give = beside._Hand.give

        def killing(hand: beside._Hand, cell: Cell) -> None:
            give(hand, cell)
            if cell.name == "mixed-n8-s1":
                hand._process.kill()

        monkeypatch.setattr(beside._Hand, "give", killing)
        done = beside.train_beside(bench, cells, failed=lambda name, outcome: lost.update({name: str(outcome.failure)}))
    assert lost == {"mixed-n8-s1": "its process ended with signal 9; the memory may not have been enough"}
    assert {cell.name for cell in done} == {cell.name for cell in cells} - {"mixed-n8-s1"}
