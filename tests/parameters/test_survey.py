"""What only large checkpoints meet: samples that guess and mislead, tensors of many units, several threads."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sftknow.artifacts.levels import parse_level
from sftknow.checkpoints.reader import widen
from sftknow.errors import CheckpointError
from sftknow.parameters import pair_kernels, passes, ranking, relative_kernels, survey, vectors
from sftknow.parameters.blending import blend_rows
from sftknow.parameters.change import Analysis, analyse
from sftknow.parameters.chunk_counters import ChunkCounters
from sftknow.parameters.compiled import compiling_announced
from sftknow.parameters.leveling import LevelSelector
from sftknow.parameters.options import Resources
from sftknow.parameters.relative import Measure
from sftknow.parameters.survey_kernels import add_entries, merged
from tests.parameters.checkpoint_pairs import Plain, stored, write_checkpoint
from tests.parameters.test_exactness import LEVELS, REGION, Case, cases, quick, run, write

SMALL = Resources(threads=4, sampled_from=0, sample=5, block=3)
"""Samples even of tiny regions, four threads."""


@pytest.fixture
def small_pieces() -> Iterator[None]:
    """Pieces of 7 elements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "PIECE", 7)
        yield


def without_hashes(found: Analysis) -> str:
    """Everything but the hashes, which are of pieces; sums of r are sums of the chunks' sums."""
    tensors = [replace(tensor, change=0.0, change_nonzero_base=0.0) for tensor in found.tensors]
    return repr((found.change, found.plan.cuts, tensors))  # repr, as NaN differs from itself


@given(case=cases())
@settings(quick, max_examples=12)
def test_pieces_samples_and_threads_make_no_difference(case: Case) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        write(case, Path(temporary))
        plainly = run(case, Path(temporary), LEVELS, block=1 << 18)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(passes, "PIECE", 7)
            in_pieces = run(case, Path(temporary), LEVELS, resources=replace(SMALL, block=case.block))
    assert without_hashes(in_pieces) == without_hashes(plainly)
    for one, other in zip(in_pieces.tensors, plainly.tensors, strict=True):
        np.testing.assert_allclose(one.change, other.change, rtol=1e-14)


@given(case=cases())
@settings(quick, max_examples=8)
def test_tie_ends_and_sums_by_tensor(case: Case) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        write(case, Path(temporary))
        found = run(case, Path(temporary), LEVELS)
    plain = case.plain()
    for cut in found.plan.cuts:
        chosen = plain.order[: int(plain.r.size * parse_level(cut.level))]
        assert cut.tie_end == (chosen[-1] + 1 if chosen.size else 0)
    starts = np.cumsum([0, *plain.sizes])
    for tensor, start, stop in zip(found.tensors, starts, starts[1:], strict=False):
        r, p = plain.r[start:stop].astype(np.float64), plain.p[start:stop]
        np.testing.assert_allclose(tensor.change, r.sum(), rtol=1e-12)
        np.testing.assert_allclose(tensor.change_nonzero_base, r[p != 0].sum(), rtol=1e-12)


def test_a_misleading_sample_costs_a_second_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_pieces: None
) -> None:
    p = np.linspace(1, 2, 200).astype(np.float32)
    base, tuned = {REGION[0]: stored(p, "F32")}, {REGION[0]: stored(p * 1.5, "F32")}
    tuned[REGION[0]][1][::3] += np.arange(67, dtype=np.uint32) << 16  # many different r
    write_checkpoint(tmp_path / "base", base)
    write_checkpoint(tmp_path / "tuned", tuned)
    runs = []
    original = ranking.survey_region
    monkeypatch.setattr(ranking, "survey_region", lambda *a, **k: runs.append(a[1]) or original(*a, **k))
    monkeypatch.setattr(ranking, "guess_bins", lambda *_: [0, 5, 0x4000])
    found = analyse(tmp_path / "base", tmp_path / "tuned", ["1%", "10%", "30%", "90%"], resources=SMALL)
    assert len(runs) == 2
    plain = Plain(base, tuned, [REGION[0]])
    for level, cut in zip(found.change.levels, found.plan.cuts, strict=True):
        mask = plain.selected(parse_level(level.level))
        assert cut.threshold_bits == plain.r[plain.order[mask.sum() - 1]].view(np.uint32)
        assert level.concentration == plain.concentration(mask, np.ones(200, bool))
    monkeypatch.setattr(
        ranking, "guess_bins", lambda *_: sorted({0, *(cut.threshold_bits >> 16 for cut in found.plan.cuts)})
    )
    runs.clear()
    again = analyse(tmp_path / "base", tmp_path / "tuned", ["1%", "10%", "30%", "90%"], resources=SMALL)
    assert without_hashes(again) == without_hashes(found)
    assert len(runs) == 1


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("gather", [relative_kernels.gather_by_masks, relative_kernels.gather_by_vectors])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 31, 33, 2048])
def test_both_ways_to_gather(dtype: str, gather: object, count: int) -> None:
    rng = np.random.default_rng(count)
    _, base = stored(rng.normal(size=count), dtype)
    _, other = stored(rng.normal(size=count), dtype)
    tuned = np.where(rng.random(count) < 0.3, other, base)
    scratch = relative_kernels.new_scratch()
    p, s = scratch.base.view(np.uint32), scratch.tuned.view(np.uint32)
    found = gather(base, tuned, scratch.places, p, s)  # type: ignore[operator]
    expected = np.flatnonzero(base != tuned)
    np.testing.assert_array_equal(scratch.places[:found], expected)
    np.testing.assert_array_equal(p[:found], base[expected])
    np.testing.assert_array_equal(s[:found], tuned[expected])


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("number", [pair_kernels.number_by_masks, pair_kernels.number_by_vectors])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 33, 2048])
def test_numbers_of_pairs(dtype: str, number: object, count: int) -> None:
    """Every step that has a number, those beyond, other signs, both zeros and the largest values."""
    rng = np.random.default_rng(count)
    largest = 0x7F7F if dtype == "BF16" else 0x7BFF
    base = rng.choice(np.array([0, 1, 0x8000, 0x8001, largest, 0x8000 | largest, 300, 0x3C00], dtype=np.uint16), count)
    step = rng.choice(np.array([0, 0, 1, -1, 127, 128, -120, -121, 0x8000], dtype=np.int64), count)
    tuned = (base.astype(np.int64) + step).astype(np.uint16)
    tuned = np.where(tuned & 0x7FFF <= largest, tuned, base)  # others are refused before
    numbers = np.empty(relative_kernels.STRETCH + 16, dtype=np.uint32)
    found = number(base, tuned, numbers)  # type: ignore[operator]
    expected = []
    for place in np.flatnonzero(base != tuned).tolist():
        p, s = int(base[place]), int(tuned[place])
        near = p >> 15 == s >> 15 and -pair_kernels.NEAREST <= (s & 0x7FFF) - (p & 0x7FFF) < 128
        magnitude, moved = p & 0x7FFF, (s & 0x7FFF) - (p & 0x7FFF)
        expected.append((moved + pair_kernels.NEAREST) << 15 | magnitude if near else pair_kernels.FAR + place)
    assert numbers[:found].tolist() == expected


@given(data=st.data())
@settings(quick, max_examples=6)
def test_counting_pairs_is_counting_elements(data: st.DataObject) -> None:
    """Two chunks with values near and far: all counters but the rounding of the sums are the same both ways."""
    measure = Measure(arithmetic=data.draw(st.sampled_from(["float32", "bfloat16"])))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    largest = 0x7F7F
    ways = []
    chunks_of = []
    for _ in range(2):
        base = rng.integers(0, largest + 1, 2_000).astype(np.uint16) | rng.choice(np.uint16([0, 0x8000]), 2_000)
        base[rng.random(2_000) < 0.1] &= 0x8000
        near = np.clip((base & 0x7FFF) + rng.integers(-300, 300, 2_000), 0, largest).astype(np.uint16) | (base & 0x8000)
        tuned = np.where(rng.random(2_000) < 0.5, near, rng.permutation(base))
        chunks_of.append((base, tuned))
    bins = sorted({0, *(np.unique(np.abs(rng.normal(size=9)).astype(np.float32).view(np.uint32) >> 16).tolist())})
    for ranks in (None, np.zeros(2_000, dtype=np.uint8)):
        counters = ChunkCounters(measure, bins, 1)
        found: list[object] = []
        for base, tuned in chunks_of:
            counters.start()
            for part in (slice(0, 1_200), slice(1_200, 2_000)):
                counters.count(base[part], "BF16", tuned[part], "BF16", None if ranks is None else ranks[part])
            counters.finish()
            lower = np.zeros(2 * len(bins) << 16, dtype=np.int64)
            add_entries(counters.take_entries(), len(bins) << 16, lower)
            found += [counters.found.intervals.tolist(), counters.found.changed.tolist(), lower.tobytes()]
            found.append([f"{value:.12g}" for value in counters.found.sums])
        ways.append((found, counters.found.histogram.tobytes(), counters.found.above_edge.tobytes()))
    assert ways[0] == ways[1]


@pytest.mark.parametrize("different", [1, 7, 5_000])
def test_entries_of_ties_are_merged(different: int) -> None:
    rng = np.random.default_rng(different)
    keys = rng.integers(0, different, 5_000).astype(np.uint64) | rng.choice(np.uint64([0, 1 << 31]), 5_000)
    entries = keys << np.uint64(32) | np.uint64(1)
    fewer = merged(entries)
    assert fewer.size <= min(entries.size, 2 * different)
    np.testing.assert_array_equal(merged(fewer), fewer)
    plainly, together = np.zeros((2, 2 << 16), dtype=np.int64)
    add_entries(entries, 1 << 16, plainly)
    add_entries(fewer, 1 << 16, together)
    np.testing.assert_array_equal(together, plainly)


@pytest.mark.parametrize("bits", [np.arange(1 << 16), np.arange(1 << 16)[::-1].copy()])
@pytest.mark.parametrize("way", ["half_by_steps", "half_by_instruction"])
def test_every_float16_is_read_rightly(bits: np.ndarray, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "half_by_instruction" and not vectors.HALVES:
        pytest.skip("this processor has no such instruction")
    halves = bits.astype(np.uint16)
    finite = halves[np.isfinite(halves.view(np.float16))]
    wide = finite.astype(np.uint32)
    monkeypatch.setattr(relative_kernels, "half_as_single", getattr(relative_kernels, way))
    widen_bits = numba.njit(relative_kernels.widen_bits.py_func)  # compiled anew, with this way
    widen_bits(wide, relative_kernels.KINDS["F16"])
    np.testing.assert_array_equal(wide, finite.view(np.float16).astype(np.float32).view(np.uint32))


@given(data=st.data())
@settings(quick, max_examples=15)
def test_ranks_and_blends(data: st.DataObject) -> None:
    """By the definition of r in `relative`: blocks in any order, every level at once and one by one."""
    case = data.draw(cases())
    with tempfile.TemporaryDirectory() as temporary:
        write(case, Path(temporary))
        found = run(case, Path(temporary), LEVELS)
    plain = case.plain()
    selector = LevelSelector(found.plan)
    assert [cut.selected for cut in selector.cuts] == sorted(cut.selected for cut in found.plan.cuts)
    expected = np.full(plain.r.size, len(selector.cuts))
    for rank, cut in reversed(list(enumerate(selector.cuts))):
        expected[plain.order[: cut.selected]] = rank
    first = 0
    for name in plain.names:
        (base_dtype, base), (tuned_dtype, tuned) = case.base[name], case.tuned[name]
        base, tuned = base.reshape(-1).copy(), tuned.reshape(-1).copy()
        ranks = np.empty(base.size, dtype=np.uint8)
        selector.ranks(base, base_dtype, tuned, tuned_dtype, first, ranks)
        np.testing.assert_array_equal(ranks, expected[first : first + base.size])
        first += base.size
        if base_dtype != tuned_dtype:
            continue
        out = np.zeros((len(selector.cuts), base.size + 3), dtype=tuned.dtype)
        counts = np.zeros((3, len(selector.cuts) + 1), dtype=np.int64)
        sign = tuned.dtype.type(1 << (8 * tuned.itemsize - 1))
        blend_rows(ranks, base, tuned, ~sign, out, 3, counts)
        differing = widen(base, base_dtype) != widen(tuned, tuned_dtype)
        for rank in range(len(selector.cuts)):
            np.testing.assert_array_equal(out[rank, 3:], np.where(ranks <= rank, base, tuned))
        for rank in range(len(selector.cuts) + 1):
            here = ranks == rank
            assert counts[:, rank].tolist() == [here.sum(), (here & differing).sum(), (here & (base != tuned)).sum()]


def test_compiling_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    anew = numba.njit(lambda x: x + 1)
    with compiling_announced():
        assert anew(1) == 2
        assert anew(1.0) == 2.0
    assert capsys.readouterr().err == "compiling the kernels for this machine (once, some seconds)\n"
    with compiling_announced():
        assert anew(2) == 3
    assert capsys.readouterr().err == ""


def test_plans_of_earlier_versions_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", {REGION[0]: stored([1, 2], "BF16")})
    write_checkpoint(tmp_path / "tuned", {REGION[0]: stored([1, 3], "BF16")})
    plan = analyse(tmp_path / "base", tmp_path / "tuned", ["50%"]).plan
    old = replace(plan, cuts=tuple(replace(cut, tie_end=None) for cut in plan.cuts))
    with pytest.raises(CheckpointError, match="make it again"):
        LevelSelector(old)


@pytest.mark.parametrize("strategy", ["top", "bottom"])
def test_as_many_levels_as_there_may_be(tmp_path: Path, strategy: str) -> None:
    """Within the memory that is given by default, each in a bin of its own; counts in 64 bits make no difference."""
    p = np.ones(4_000, dtype=np.float32)
    s = p * (1 + 2.0 ** np.linspace(-20, 0, p.size)).astype(np.float32)
    base, tuned = {REGION[0]: stored(p, "F32")}, {REGION[0]: stored(s, "F32")}
    write_checkpoint(tmp_path / "base", base)
    write_checkpoint(tmp_path / "tuned", tuned)
    levels = [f"{i}/251" for i in range(1, 251)]
    plain = Plain(base, tuned, [REGION[0]], strategy=strategy)
    found = analyse(tmp_path / "base", tmp_path / "tuned", levels, strategy=strategy)
    for cut in found.plan.cuts:
        assert cut.threshold_bits == plain.r[plain.order[cut.selected - 1]].view(np.uint32)
    for level in found.change.levels[::25]:
        mask = plain.selected(parse_level(level.level))
        np.testing.assert_allclose(level.concentration, plain.concentration(mask, np.ones(p.size, bool)), rtol=1e-12)
    fewer = analyse(tmp_path / "base", tmp_path / "tuned", levels[::3], strategy=strategy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "count_dtype", lambda _: np.dtype(np.int64))
        assert analyse(tmp_path / "base", tmp_path / "tuned", levels[::3], strategy=strategy) == fewer


def test_too_little_memory_and_too_many_levels_are_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", {REGION[0]: stored([1, 2], "BF16")})
    write_checkpoint(tmp_path / "tuned", {REGION[0]: stored([1, 3], "BF16")})
    with pytest.raises(CheckpointError, match=r"give \d+ MB"):
        analyse(tmp_path / "base", tmp_path / "tuned", ["50%"], resources=Resources(memory=1 << 20))
    with pytest.raises(CheckpointError, match="levels are too many"):
        analyse(tmp_path / "base", tmp_path / "tuned", [f"{i}/1000" for i in range(300)])


@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_nan_is_found_where_both_have_it(tmp_path: Path, side: str, dtype: str, small_pieces: None) -> None:
    values = np.ones(40, dtype=np.float32)
    broken = values.copy()
    broken[[17, 38]] = np.nan, np.inf
    write_checkpoint(tmp_path / "base", {REGION[0]: stored(broken, dtype)})
    tuned = broken if side == "base" else values
    write_checkpoint(tmp_path / "tuned", {REGION[0]: stored(tuned, dtype)})
    with pytest.raises(CheckpointError, match=r"q_proj.weight has 1 NaN and 1 infinite values in .*base") as raised:
        analyse(tmp_path / "base", tmp_path / "tuned", ["50%"])
    assert ("1 infinite values in " + str(tmp_path / "tuned") in str(raised.value)) == (side == "base")
