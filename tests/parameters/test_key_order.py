from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from sftknow.errors import CheckpointError
from sftknow.parameters import passes
from sftknow.parameters.key_order import Workload, cuts_by_keys
from sftknow.parameters.options import Resources
from sftknow.parameters.pairs import pair_checkpoints
from sftknow.parameters.relative import Measure
from sftknow.parameters.selection import random_keys
from sftknow.parameters.strategies import STRATEGIES, Block, largest_first
from sftknow.records import LevelCut
from tests.parameters.checkpoint_pairs import stored, write_checkpoint

LEVELS = [("25%", Fraction(1, 4)), ("0%", Fraction(0)), ("1/3", Fraction(1, 3)), ("100%", Fraction(1))]


def cuts(folder: Path, elements: int, strategy: str, seed: int, levels: list[tuple[str, Fraction]]) -> list[LevelCut]:
    if not folder.exists():
        for side in ("base", "tuned"):
            write_checkpoint(folder / side, {"model.layers.0.mlp.up_proj.weight": stored(np.ones(elements), "BF16")})
    pair = pair_checkpoints(folder / "base", folder / "tuned", "transformer", None)
    resources = Resources(threads=3, block=1000)
    work = Workload(pair=pair, measure=Measure(), strategy=strategy, seed=seed, resources=resources)
    return cuts_by_keys(work, levels)


def check(keys: np.ndarray, found: list[LevelCut]) -> None:
    order = np.lexsort((np.arange(keys.size), -keys.astype(np.int64)))
    for (level, share), cut in zip(LEVELS, found, strict=True):
        chosen = order[: int(keys.size * share)]
        assert (cut.level, cut.selected) == (level, chosen.size)
        if chosen.size:
            last = chosen[-1]
            assert cut.threshold_bits == keys[last]
            assert cut.ties == (keys[chosen] == keys[last]).sum()
            assert cut.tie_end == last + 1


@pytest.mark.parametrize("piece", [700, 1 << 20])
def test_cuts_are_those_of_a_sort(piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "PIECE", piece)
    for seed in (0, -5, 2**70):
        check(random_keys(seed, 0, 5_000), cuts(tmp_path / "pair", 5_000, "random", seed, LEVELS))


@pytest.mark.parametrize("different", [1, 3, 1000])
def test_ties_go_to_the_lowest_index(different: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "PIECE", 700)
    keys = np.random.default_rng(0).integers(0, different, 5_000).astype(np.uint32) * np.uint32(70_000)
    STRATEGIES.register("given")(lambda block: keys[block.first : block.first + block.count])
    try:
        check(keys, cuts(tmp_path / "pair", keys.size, "given", 0, LEVELS))
    finally:
        STRATEGIES.remove("given")


def test_selection_is_uniform_and_differs_by_seed(tmp_path: Path) -> None:
    masks = []
    for seed in range(2):
        (cut,) = cuts(tmp_path / "pair", 40_000, "random", seed, LEVELS[:1])
        masks.append(random_keys(seed, 0, 40_000) >= cut.threshold_bits)
        assert masks[-1].sum() == cut.selected == 10_000
        assert all(2350 < part.sum() < 2650 for part in np.split(masks[-1], 4))
    assert 2350 < (masks[0] & masks[1]).sum() < 2650  # independent: a sixteenth of all


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    STRATEGIES.register("floats")(lambda block: block.change)  # type: ignore[arg-type, return-value]
    STRATEGIES.register("few")(lambda block: np.zeros(1, dtype=np.uint32))
    try:
        for name, what in (("floats", r"floats returned float32 of shape \(9,\)"), ("few", r"uint32 of shape \(1,\)")):
            with pytest.raises(CheckpointError, match=what):
                cuts(tmp_path / "pair", 9, name, 0, LEVELS)
    finally:
        STRATEGIES.remove("floats")
        STRATEGIES.remove("few")


def test_keys_of_values() -> None:
    values = np.float32([3, -0.0, 0.0, -1e-45, -7, np.inf, 1e-45, -np.inf])
    keys = largest_first(values)
    assert keys.dtype == np.uint32
    assert keys[1] == keys[2]
    assert values[np.argsort(-keys.astype(np.int64), kind="stable")].tolist() == sorted(values.tolist(), reverse=True)


def test_a_block_reads_what_it_is_asked_for() -> None:
    def read() -> tuple[tuple[np.ndarray, str], tuple[np.ndarray, str]]:
        reads.append(1)
        return tuple((bits, dtype) for dtype, bits in (stored([1, 2], "BF16"), stored([1, 3], "F32")))  # type: ignore[return-value]

    reads: list[int] = []
    block = Block(5, 2, 0, Measure(), read)
    assert STRATEGIES.get("random")(block).tolist() == random_keys(0, 5, 2).tolist()
    assert not reads
    assert (block.base.tolist(), block.tuned.tolist(), block.change.tolist()) == ([1, 2], [1, 3], [0, 0.5])
    assert reads == [1]
