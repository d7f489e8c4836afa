"""The whole of analyse and restore against a flat vector and a stable sort, on hundreds of generated pairs."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sftknow.artifacts.levels import parse_level
from sftknow.parameters.change import Analysis, analyse
from sftknow.parameters.options import Resources
from sftknow.parameters.restore import restore
from tests.parameters.checkpoint_pairs import (
    Plain,
    Tensor,
    read_checkpoint,
    stored,
    values_of,
    write_checkpoint,
)

REGION = (
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.2.mlp.down_proj.weight",
    "model.layers.10.mlp.down_proj.weight",
    "model.layers.10.mlp.up_proj.weight",
)
OUTSIDE = ("lm_head.weight", "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "model.norm.weight")
SEVEN = ("1%", "3%", "5%", "10%", "20%", "40%", "60%")
LEVELS = ("0%", *SEVEN, "1/3", "99.9%", "100%")

# r between two such values collides often; ±0, subnormal and nearly equal values are among them.
POOLS = {
    "ties": [0.5, 1.0, 1.5, 2.0, -1.0, 0.0],
    "zeros": [0.0, 0.0, 0.0, -0.0, -0.0, 1e-7, -1e-7, 0.25],
    "fine": [1.0, 1.0078125, 1.015625, 0.99609375, -1.0, -1.0078125],
    "extreme": [1e-38, 1e-41, 3e-5, 6e-8, 3e4, -3e4, 5e4, 0.0, 1e-8, -2e-8],
}


@dataclass(frozen=True)
class Case:
    base: dict[str, Tensor]
    tuned: dict[str, Tensor]
    base_shards: int
    tuned_shards: int
    strategy: str
    seed: int
    epsilon: float
    arithmetic: str
    compare_in: str
    block: int

    def plain(self) -> Plain:
        names = [name for name in self.base if name in REGION]
        return Plain(
            self.base,
            self.tuned,
            names,
            strategy=self.strategy,
            seed=self.seed,
            epsilon=self.epsilon,
            arithmetic=self.arithmetic,
            compare_in=self.compare_in,
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pool = np.array(POOLS[draw(st.sampled_from(sorted(POOLS)))], dtype=np.float32)
    continuous = draw(st.booleans())
    base_dtype = draw(st.sampled_from(["BF16", "F16", "F32"]))
    tuned_dtype = draw(st.sampled_from([base_dtype, base_dtype, "BF16", "F16", "F32"]))
    moved = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    names = [*REGION[: draw(st.integers(1, len(REGION)))], *OUTSIDE]
    base, tuned = {}, {}
    for name in names:
        shape = (int(rng.integers(1, 9)), int(rng.integers(1, 7))) if rng.random() < 0.7 else (int(rng.integers(1, 3)),)
        p = rng.choice(pool, shape)
        s = np.where(rng.random(shape) < moved, rng.choice(pool, shape), p)
        if continuous:
            p = (p * (1 + rng.random(shape) / 8)).astype(np.float32)
            s = np.where(rng.random(shape) < moved, p + rng.normal(size=shape) * 0.01, p)
        base[name], tuned[name] = stored(p, base_dtype), stored(s, tuned_dtype)
    shuffled = rng.permutation(names).tolist()
    return Case(
        base=base,
        tuned={name: tuned[name] for name in shuffled},
        base_shards=draw(st.integers(1, 3)),
        tuned_shards=draw(st.integers(1, 3)),
        strategy=draw(st.sampled_from(["top", "top", "bottom", "random"])),
        seed=draw(st.integers(-3, 2**70)),
        epsilon=draw(st.sampled_from([1e-8, 1e-8, 0.0, 1e-3, 100.0])),
        arithmetic=draw(st.sampled_from(["float32", "float32", "bfloat16"])),
        compare_in=draw(st.sampled_from(["coarser", "stored"])),
        block=draw(st.sampled_from([1 << 22, 5, 1])),
    )


def run(
    case: Case, folder: Path, levels: tuple[str, ...], block: int | None = None, resources: Resources | None = None
) -> Analysis:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pairs in which nothing moved are among the cases
        return analyse(
            folder / "base",
            folder / "tuned",
            levels,
            strategy=case.strategy,
            seed=case.seed,
            epsilon=case.epsilon,
            arithmetic=case.arithmetic,
            compare_in=case.compare_in,
            resources=resources or Resources(block=block or case.block),
        )


def write(case: Case, folder: Path) -> None:
    write_checkpoint(folder / "base", case.base, shards=case.base_shards)
    write_checkpoint(folder / "tuned", case.tuned, shards=case.tuned_shards)


@pytest.fixture(autouse=True, scope="module")
def without_fsync() -> Iterator[None]:
    """Hundreds of folders are written here, and none of them has to survive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@given(case=cases())
@settings(quick, max_examples=100)
def test_analysis_equals_a_stable_sort(case: Case) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        write(case, Path(temporary))
        found = run(case, Path(temporary), LEVELS)
    plain = case.plain()
    changed = plain.p != plain.s
    assert found.change.elements == plain.r.size
    assert found.change.changed == changed.sum()
    if len({tensor[0] for side in (case.base, case.tuned) for tensor in side.values()}) > 1:
        each = {way: dataclasses.replace(case, compare_in=way).plain() for way in ("coarser", "stored")}
        assert found.change.changed_beyond_rounding == (each["coarser"].p != each["coarser"].s).sum()
        assert found.change.changed_as_stored == (each["stored"].p != each["stored"].s).sum()
    assert sum(count for _, count in found.change.histogram) == changed.sum()
    assert [tensor.name for tensor in found.tensors] == plain.names
    everything, nonzero_base = np.ones(plain.r.size, bool), ~(changed & (plain.p == 0))
    for i, (level, cut) in enumerate(zip(found.change.levels, found.plan.cuts, strict=True)):
        mask = plain.selected(parse_level(level.level))
        assert level.selected == cut.selected == mask.sum()
        assert level.selected_unchanged == (mask & ~changed).sum()
        assert {tensor.name: tensor.selected[i] for tensor in found.tensors} == plain.per_tensor(mask)
        assert sum(level.by_layer.values()) == sum(level.by_module.values()) == level.selected
        np.testing.assert_equal(level.concentration, plain.concentration(mask, everything))
        np.testing.assert_equal(level.concentration_nonzero_base, plain.concentration(mask, nonzero_base))
        if case.strategy != "random" and level.selected:
            last = plain.r[plain.order[level.selected - 1]]
            assert cut.threshold_bits == last.view(np.uint32)
            assert cut.ties == (plain.r[mask] == last).sum()


@given(case=cases(), level=st.sampled_from(LEVELS))
@settings(quick, max_examples=100)
def test_restoration_equals_a_stable_sort(case: Case, level: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(case, folder)
        found = run(case, folder, LEVELS)
        out = folder / "out"
        done = restore(folder / "base", folder / "tuned", found.plan, level, out, manifest={})
        written, before = read_checkpoint(out), read_checkpoint(folder / "tuned")
        assert sorted(path.name for path in out.glob("*.safetensors")) == sorted(
            path.name for path in (folder / "tuned").glob("*.safetensors")
        )
    plain = case.plain()
    mask = plain.selected(parse_level(level))
    parts = dict(zip(plain.names, np.split(mask, np.cumsum(plain.sizes)[:-1]), strict=True))
    restored = 0
    for name, (dtype, bits) in case.tuned.items():
        expected = bits
        if name in parts:
            base = case.base[name] if case.base[name][0] == dtype else stored(values_of(case.base[name]), dtype)
            expected = np.where(parts[name].reshape(bits.shape), base[1], bits)
            restored += int((values_of((dtype, expected)) != values_of((dtype, bits))).sum())
        assert written[name] == expected.tobytes()
        if level == "0%":
            assert written[name] == before[name]
        if level == "100%" and name in parts and case.base[name][0] == dtype:
            assert written[name] == case.base[name][1].tobytes()
    assert done.restored == restored


@given(case=cases())
@settings(quick, max_examples=20)
def test_levels_blocks_and_shards_make_no_difference(case: Case) -> None:
    """Seven levels at once are seven runs; tiny blocks are one block; shards do not matter. Floats to the last bit."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(case, folder)
        at_once = run(case, folder, SEVEN, block=3)
        assert repr(run(case, folder, SEVEN, block=1 << 22)) == repr(at_once)  # repr, as NaN differs from itself
        for i, level in enumerate(SEVEN):
            alone = run(case, folder, (level,), block=1 << 22)
            assert repr(alone.change.levels[0]) == repr(at_once.change.levels[i])
            assert alone.plan.cuts[0] == at_once.plan.cuts[i]
            assert alone.plan.tuned_sha256 == at_once.plan.tuned_sha256
    for before, after in zip(at_once.change.levels, at_once.change.levels[1:], strict=False):
        assert before.selected <= after.selected


@pytest.mark.parametrize("level", ["29%", "58%", "57.3%", "7/100"])
def test_shares_are_rationals(level: str, tmp_path: Path) -> None:
    """0.29 · 100 is 28.999… in floating point."""
    base = {REGION[0]: stored(np.arange(1, 1001), "F32")}
    tuned = {REGION[0]: stored(np.arange(1, 1001) * 1.5, "F32")}
    write_checkpoint(tmp_path / "base", base)
    write_checkpoint(tmp_path / "tuned", tuned)
    found = analyse(tmp_path / "base", tmp_path / "tuned", [level])
    exact = Fraction(level[:-1]) / 100 if level.endswith("%") else Fraction(level)
    assert found.change.levels[0].selected == 1000 * exact.numerator // exact.denominator
