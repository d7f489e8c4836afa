from __future__ import annotations

import pytest

from sftknow.errors import RecipeError
from sftknow.recipes.schema import GridSection
from sftknow.run.cells import Cell, grid_cells


def test_grid_has_every_combination_once() -> None:
    cells = grid_cells(GridSection(buckets=(0, 4), sizes=(60, "all"), seeds=(0, 1), mixed=True))
    assert len({cell.name for cell in cells}) == len(cells) == 3 * 2 * 2
    assert cells[0].name == "b0-n60-s0"
    assert cells[-1].name == "mixed-nall-s1"


@pytest.mark.parametrize("name", ["b0-n60-s0", "b4-nall-s12", "mixed-n1920-s3"])
def test_names_are_read_back(name: str) -> None:
    assert Cell.parse(name).name == name


@pytest.mark.parametrize("name", ["b5-n60-s0", "b0-n60", "best", "b0-n-s0", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="no cell"):
        Cell.parse(name)
