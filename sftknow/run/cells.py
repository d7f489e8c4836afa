"""The grid of fine-tuned models: names and contents of its cells."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sftknow.errors import RecipeError
from sftknow.recipes.schema import GridSection, Recipe
from sftknow.report.cells import named
from sftknow.training.recipe import STRATEGIES

_NAME = re.compile(
    r"(?:b(?P<bucket>[0-4])|mixed|(?P<lora>lora)|(?P<strategy>[a-z0-9-]+?)(?:-b(?P<its_bucket>[0-4]))?)"
    r"-n(?P<size>\d+|all)-s(?P<seed>\d+)"
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One fine-tuned model of the grid."""

    bucket: int | None
    """Mastery bucket of its training facts; None for a draw over all buckets."""
    size: int | None
    """Number of training facts; None for all of the bucket."""
    seed: int
    lora: bool = False
    """Trained with LoRA; such a cell draws over all buckets (paper, Table 7)."""
    strategy: str | None = None
    """The training strategy by its name; None for plain fine-tuning and LoRA."""

    @property
    def name(self) -> str:
        """Such as ``b2-n240-s0``, ``mixed-nall-s1``, ``lora-n240-s0``, ``dft-n240-s0`` or ``dft-b2-n240-s0``."""
        source = "lora" if self.lora else "mixed" if self.bucket is None else f"b{self.bucket}"
        if self.strategy is not None:
            source = self.strategy if self.bucket is None else f"{self.strategy}-{source}"
        return f"{source}-n{'all' if self.size is None else self.size}-s{self.seed}"

    def fits(self, counts: Sequence[int]) -> bool:
        """Whether there are as many training facts, given those of each bucket."""
        return (sum(counts) if self.bucket is None else counts[self.bucket]) >= (self.size or 1)

    def record(self) -> dict[str, Any]:
        """All of it, for keys; a cell without a strategy is written as it was before there were any."""
        content = asdict(self)
        return {name: value for name, value in content.items() if name != "strategy" or value is not None}

    @classmethod
    def parse(cls, name: str) -> Cell:
        """The inverse of `name`. Raises RecipeError for anything else."""
        match = _NAME.fullmatch(name)
        if not match or (match["strategy"] is not None and match["strategy"] not in STRATEGIES):
            raise RecipeError(f"{name} is no cell of a grid; cells are called like b2-n240-s0 or mixed-nall-s1")
        bucket, size = match["bucket"] or match["its_bucket"], match["size"]
        return cls(
            bucket=None if bucket is None else int(bucket),
            size=None if size == "all" else int(size),
            seed=int(match["seed"]),
            lora=match["lora"] is not None,
            strategy=match["strategy"],
        )


def grid_cells(grid: GridSection) -> list[Cell]:
    """All cells of the grid, bucket by bucket, then the mixed draws, LoRA and the strategies; small sizes first."""
    sources: list[tuple[int | None, bool, str | None]] = [(bucket, False, None) for bucket in grid.buckets]
    sources += [(None, False, None)] * grid.mixed + [(None, True, None)] * grid.lora
    sources += [(None if on == "mixed" else on, False, name) for name in grid.strategies for on in grid.strategies_on]
    return [
        Cell(bucket=bucket, size=None if size == "all" else size, seed=seed, lora=lora, strategy=strategy)
        for bucket, lora, strategy in sources
        for size in (grid.sizes if bucket is not None or grid.mixed_sizes is None else grid.mixed_sizes)
        for seed in grid.seeds
    ]


def names_of(grid: GridSection, wanted: Collection[str], option: str) -> set[str]:
    """The cells that names stand for: a name without its seed, such as ``b2-n240``, for those of all seeds.

    Args:
        grid: whose cells they are.
        wanted: names; ``best`` stays as it is.
        option: that holds them, for the message.

    Raises:
        RecipeError: the grid has no such cell.
    """
    names = [cell.name for cell in grid_cells(grid)]
    found = {"best"} & set(wanted)
    for name in sorted(set(wanted) - found):
        meant = named(names, name)
        if not meant:
            raise RecipeError(f"{option}: {name} is not in the grid; it has {some_of(names)}")
        found.update(meant)
    return found


def some_of(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" … ({len(names)} in all)" if len(names) > 12 else "")


def fitting(grid: GridSection, counts: Sequence[int]) -> str:
    """The facts of each bucket, and the ``--set`` of a grid that they can fill whole.

    Args:
        grid: what is asked.
        counts: training facts of each bucket.
    """
    filled = [bucket for bucket in grid.buckets if counts[bucket]]
    most = min((counts[bucket] for bucket in filled), default=sum(counts))
    sizes = [size for size in grid.sizes if size == "all" or size <= most] or [most]
    settings = [f"grid.sizes=[{','.join(map(str, sizes))}]"] if tuple(sizes) != grid.sizes else []
    if len(filled) < len(grid.buckets):
        settings.insert(0, f"grid.buckets=[{','.join(map(str, filled))}]")
    there = ", ".join(f"{counts[bucket]:,} in bucket {bucket}" for bucket in grid.buckets)
    return f"there are {there or f'{sum(counts):,}'} training facts; what fits: --set {' --set '.join(settings)}"


def levels_of(recipe: Recipe) -> Sequence[str]:
    """Levels at which fine-tuned models are restored."""
    return recipe.restore.levels or recipe.parameters.levels


def by_seed(cells: Sequence[Cell]) -> list[Cell]:
    """Cells seed by seed, so that a comparison that was cut off is a fair one; mixed draws first, plain ones before."""
    return sorted(cells, key=lambda cell: (cell.seed, cell.bucket is not None))
