from __future__ import annotations

from dataclasses import replace

import pytest

from sftknow.errors import RecipeError
from sftknow.recipes.schema import GridSection
from sftknow.run.cells import Cell, by_seed, grid_cells, names_of


def test_grid_has_every_combination_once() -> None:
    cells = grid_cells(GridSection(buckets=(0, 4), sizes=(60, "all"), seeds=(0, 1), mixed=True))
    assert len({cell.name for cell in cells}) == len(cells) == 3 * 2 * 2
    assert cells[0].name == "b0-n60-s0"
    assert cells[-1].name == "mixed-nall-s1"


def test_strategies_come_last_on_what_they_are_asked_for() -> None:
    grid = GridSection(buckets=(0,), sizes=(60,), seeds=(0,), lora=True, strategies=("l2-sp", "dft"))
    assert [cell.name for cell in grid_cells(grid)] == ["b0-n60-s0", "lora-n60-s0", "l2-sp-n60-s0", "dft-n60-s0"]
    on = grid_cells(replace(grid, strategies=("l2-sp",), strategies_on=(2, "mixed")))[2:]
    assert [(cell.name, cell.bucket) for cell in on] == [("l2-sp-b2-n60-s0", 2), ("l2-sp-n60-s0", None)]
    assert {cell.strategy for cell in on} == {"l2-sp"}


def test_keys_of_cells_without_a_strategy_are_what_they_were() -> None:
    assert Cell(bucket=2, size=60, seed=0).record() == {"bucket": 2, "size": 60, "seed": 0, "lora": False}
    assert Cell(bucket=None, size=60, seed=0, strategy="dft").record()["strategy"] == "dft"


@pytest.mark.parametrize(
    "name",
    ["b0-n60-s0", "b4-nall-s12", "mixed-n1920-s3", "lora-n60-s0", "dft-n60-s0", "l2-sp-nall-s1", "l2-sp-b2-n60-s0"],
)
def test_names_are_read_back(name: str) -> None:
    assert Cell.parse(name).name == name


@pytest.mark.parametrize("name", ["b5-n60-s0", "no-such-n60-s0", "b0-n60", "best", "b0-n-s0", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="no cell"):
        Cell.parse(name)


def test_mixed_draws_have_sizes_of_their_own_and_an_arena_goes_seed_by_seed() -> None:
    grid = GridSection(
        buckets=(0,), sizes=(8, 16), seeds=(0, 1), mixed=True, strategies=("kl",), strategies_on=("mixed", 0),
        mixed_sizes=(24,),
    )  # fmt: skip
    names = [cell.name for cell in grid_cells(grid)]
    assert [name for name in names if name.startswith(("mixed", "kl-n"))] == [
        "mixed-n24-s0", "mixed-n24-s1", "kl-n24-s0", "kl-n24-s1",
    ]  # fmt: skip
    ordered = [cell.name for cell in by_seed(grid_cells(grid))]
    assert ordered[:3] == ["mixed-n24-s0", "kl-n24-s0", "b0-n8-s0"]
    assert sorted(ordered) == sorted(names)
    assert [name[-1] for name in ordered] == ["0"] * 6 + ["1"] * 6


def test_a_name_without_a_seed_stands_for_all_seeds() -> None:
    grid = GridSection(buckets=(0, 2), sizes=(24, 240), seeds=(0, 1), mixed=True, strategies=("dft",))
    assert names_of(grid, ["best", "b0-n24", "mixed-n240-s1", "dft-n24"], "x") == {
        "best", "b0-n24-s0", "b0-n24-s1", "mixed-n240-s1", "dft-n24-s0", "dft-n24-s1",
    }  # fmt: skip
    assert names_of(grid, ["b0-n240", "b0-n240-s1"], "x") == {"b0-n240-s0", "b0-n240-s1"}, "each once"
    for wrong in ("b0", "b0-n2", "b0-n24-", "n24", "b1-n24", "b0-n24-s2"):
        with pytest.raises(RecipeError, match=f"restore.cells: {wrong} is not in the grid; it has b0-n24-s0"):
            names_of(grid, [wrong], "restore.cells")
