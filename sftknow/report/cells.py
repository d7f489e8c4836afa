"""What the models of a run were trained on, as their names say it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_CELL = re.compile(r"(?P<source>.+)-n(?P<size>\d+|all)-s(?P<seed>\d+)")
_BUCKET_SOURCE = re.compile(r"b([0-4])")
_STRATEGY_SOURCE = re.compile(r"(?P<strategy>.+?)(?:-b(?P<bucket>[0-4]))?")
_LAYERS = re.compile(r"layers-(\d+(?:-\d+)?)")


def named(cells: Sequence[str], name: str) -> list[str]:
    """The cells that a recipe's word means: the one of that name, or, without its seed, those of all seeds."""
    return [cell for cell in cells if cell == name or cell.startswith(f"{name}-s")]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of training: what on, and on how much."""

    source: str
    """What it was trained on: ``b0`` to ``b4``, ``mixed``, or how: ``lora``, ``dft``, ``dft-b2``."""
    size: int
    """Training facts."""
    all: bool
    """True where every fact there was was taken (``nall``)."""

    @property
    def bucket(self) -> int | None:
        """The mastery bucket trained on; None for anything else."""
        match = _BUCKET_SOURCE.fullmatch(self.source)
        return int(match[1]) if match else None

    @property
    def trained_on(self) -> str:
        """Such as ``bucket 2``."""
        if self.bucket is not None:
            return f"bucket {self.bucket}"
        return "all buckets mixed" if self.source == "mixed" else ", ".join(self._strategy)

    @property
    def phrase(self) -> str:
        """In running text, such as ``240 facts of bucket 2``."""
        facts = f"{self.size:,} facts"
        if self.bucket is not None:
            return f"{facts} of bucket {self.bucket}"
        if self.source == "mixed":
            return f"{facts} of all buckets"
        strategy, of = self._strategy
        return f"{facts} of {of} with {strategy}"

    @property
    def _strategy(self) -> tuple[str, str]:
        """Another way of training, and which buckets' facts it is given."""
        match = _STRATEGY_SOURCE.fullmatch(self.source)
        bucket = match["bucket"] if match else None
        name = match["strategy"] if match else self.source
        return "LoRA" if name == "lora" else name, "all buckets" if bucket is None else f"bucket {bucket}"

    @property
    def title(self) -> str:
        """Such as ``bucket 2, 240 facts``."""
        return f"{self.trained_on}, {self.size:,} facts"


@dataclass(frozen=True, kw_only=True)
class Cell(Kind):
    """One fine-tuning of the grid, read from its name such as ``b2-n240-s0``."""

    name: str
    seed: int

    @classmethod
    def read(cls, name: str, size: int | None, train: Mapping[int, int]) -> Cell | None:
        """A cell from its name; None for the name of anything else.

        Args:
            name: a model's.
            size: training facts of a cell that took ``all``, where its manifest says it.
            train: training facts of each bucket, which such a cell took where it does not.
        """
        match = _CELL.fullmatch(name)
        if match is None or "@" in name:
            return None
        bucket = _BUCKET_SOURCE.fullmatch(match["source"])
        if match["size"] != "all":
            size = int(match["size"])
        elif size is None:
            size = train.get(int(bucket[1]), 0) if bucket else sum(train.values())
        return cls(
            name=name, source=match["source"], size=int(size), all=match["size"] == "all", seed=int(match["seed"])
        )


def is_draw(name: str) -> bool:
    """Whether a model, restored or not, is one draw of a kind of training: a cell of a grid, and no given model."""
    return _CELL.fullmatch(name.partition("@")[0]) is not None


def layer_range(level: str) -> str | None:
    """``layers-0-3`` → ``0-3``: the decoder layers set back as a whole; None for the name of a share."""
    match = _LAYERS.fullmatch(level)
    return match[1] if match else None
