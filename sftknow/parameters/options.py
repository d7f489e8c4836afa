"""How the parameters of a checkpoint pair are put in order and written: options that recipes and commands share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from sftknow.machine import available_processors
from sftknow.options import NOT_IN_RECIPES, Bytes, Count, Level, Limits, NotNegative, Options, shown_as
from sftknow.parameters.methods import METHODS as METHODS
from sftknow.parameters.strategies import STRATEGIES
from sftknow.registry import Registered

_PROCESS_BYTES, _THREAD_BYTES = 336 * 10**6, 88 * 10**6  # 512 MB for two threads


@dataclass(frozen=True, kw_only=True)
class Resources(Options):
    """What a pass over a region may use. No result depends on it."""

    threads: Count = field(default_factory=available_processors)
    """Threads that compute; files are written by three times as many, which mostly wait for the disk."""
    memory: Bytes | None = field(default=None, metadata=shown_as("SIZE"))
    """Memory that the whole process may take, such as 2GB; with less, fewer threads work; None for 512MB, and 88MB for
    each thread beyond two."""
    block: Count = 1 << 18
    """Elements that are read at a time, at most `PIECE`: both sides stay in the second-level cache."""
    window: Count = 1 << 22
    """Bytes of an output that are written at a time, at most: with so many a disk takes as much as it ever does."""
    quiet: NotNegative = 1.0
    """Work that takes fewer seconds than this, on two cores, shows no progress bar."""
    sampled_from: Annotated[int, Limits(ge=0)] = 1 << 24
    """Elements from which on a region is sampled, which saves a second pass over it."""
    sample: Count = 8192
    """Elements that are sampled in one place."""

    @property
    def bytes(self) -> int:
        """``memory``, or the default for so many threads."""
        return _PROCESS_BYTES + max(self.threads, 2) * _THREAD_BYTES if self.memory is None else self.memory


@dataclass(frozen=True, kw_only=True)
class PairOptions(Options):
    """How the parameters of a pair are put in order (paper, 5.1 and B.2), and the shares that are looked at."""

    region: str = field(default="transformer", metadata=shown_as("NAME"))
    """``transformer`` (the decoder layers without norms, as the authors), ``attention``, ``mlp``, ``embedding``,
    ``all``, or ``re:EXPRESSION`` over tensor names.

    The paper speaks of all parameters (B.2). Its authors' code takes the tensors with ``layers`` and without ``norm``
    in their names: no embeddings, no output head, no norms."""
    layers: str | None = field(default=None, metadata=shown_as("A-B"))
    """A range of decoder layers such as ``0-3``; None for all."""
    levels: tuple[Level, ...] = ("1%", "3%", "5%", "10%", "20%", "40%", "60%")
    """Shares of the region, in that order.

    The paper does not say of which share of the elements its Tables 9 and 10 are; here they have a column for
    each."""
    strategy: Annotated[str, Registered(STRATEGIES)] = "top"
    """Which parameters come first; ``top`` takes the most changed."""
    seed: int = 0
    """Seed of the strategy ``random``."""
    epsilon: Annotated[float, Limits(ge=0, le=1e30)] = 1e-8
    """Added to |p| in the relative change |s−p| ÷ (|p| + ε), as the authors do.

    The paper's formula (B.2) has none; its authors' code has this one. 0 ranks a zero that changed before all
    else."""
    arithmetic: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16`` reproduces the authors' rounding.

    The paper does not say. Its authors' code casts both models to bfloat16 and sums in it; such sums need not even
    grow with the level."""
    compare_in: Literal["coarser", "stored"] = "coarser"
    """Where base and fine-tuned model are stored in different dtypes: compare them in the ``coarser`` one, in which
    rounding is no change, or as ``stored``."""
    common_rows: bool = field(default=False, metadata=NOT_IN_RECIPES)
    """Where the vocabulary grew or shrank, compare the rows of the embeddings that both have."""
    ignore: str | None = field(default=None, metadata=shown_as("PATTERN"))
    """Leave tensors alone whose names match this regular expression: they may be missing in either model."""
    resources: Resources = field(default_factory=Resources, metadata=NOT_IN_RECIPES)
    """Threads and memory; no result depends on them."""

    def settings(self) -> dict[str, Any]:
        """As `Options.settings`, without keys that earlier versions did not have where they are at their defaults.

        Finished stages of a run are known by these settings.
        """
        found = super().settings()
        later = {"compare_in": "coarser", "ignore": None}
        return {name: value for name, value in found.items() if name not in later or value != later[name]}

    @property
    def order(self) -> dict[str, Any]:
        """Keywords of `sftknow.parameters.change.analyse`: everything but the levels."""
        return {name: value for name, value in vars(self).items() if name != "levels"}


@dataclass(frozen=True, kw_only=True)
class WriteOptions(Options):
    """How restored checkpoints are written, `PairOptions.resources` apart; see `sftknow.parameters.restore`."""

    links: bool = True
    """Let two outputs share a file that is the same in both, by a read-only hard link."""
    shard_bytes: Bytes | None = field(default=None, metadata=shown_as("SIZE"))
    """Largest shard, such as 5GB; None for the shards of the fine-tuned checkpoint."""


@dataclass(frozen=True, kw_only=True)
class MethodOptions(Options):
    """Which candidates of a repair are tried."""

    methods: tuple[str, ...] = ()
    """Methods of repair, such as interpolation,lines; None for all that there are."""
    strengths: tuple[Level, ...] = ()
    """Strengths such as 20%,50% for every method that takes a share; None for each method's own."""
    common_rows: bool = False
    """Where the vocabulary grew or shrank, compare the rows of the embeddings that both have."""
    ignore: str | None = field(default=None, metadata=shown_as("PATTERN"))
    """Leave tensors alone whose names match this regular expression: they may be missing in either model."""
