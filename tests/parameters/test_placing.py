"""Where a candidate is, seen from the base; the strength that leaves a distance; what each tensor loses alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sftknow.parameters.candidates import Candidate, Candidates, grid
from sftknow.parameters.change import analyse
from sftknow.parameters.methods import METHODS
from sftknow.parameters.placing import as_far, place_
from sftknow.parameters.restore import restore_levels
from tests.parameters.checkpoint_pairs import read_checkpoint
from tests.parameters.test_candidates import WEIGHTS, flat, in_memory, joined, made, pair


@pytest.mark.parametrize("method", ["relative", "smallest", "per-tensor", "interpolation"])
def test_a_place_is_what_numpy_finds(tmp_path: Path, method: str) -> None:
    base, tuned = pair(tmp_path)
    candidate = Candidate(method, "40%")
    candidates = Candidates(base, tuned, [candidate])
    place = place_(None, candidates, candidates.maker(candidate))
    p, out = flat(base), joined(in_memory(base, tuned, method, "40%"))
    assert place.distance == pytest.approx(float(np.linalg.norm(out.astype(np.float64) - p)))
    assert place.changed == np.count_nonzero(out.view(np.uint32) != p.view(np.uint32)) / p.size
    untouched = place_(None, candidates, None)
    assert untouched.distance == pytest.approx(float(np.linalg.norm(flat(tuned).astype(np.float64) - p)))
    assert untouched.distance > place.distance


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), weight=st.floats(0.05, 0.95))
def test_the_strength_of_an_interpolation_follows_from_the_distance(
    tmp_path_factory: pytest.TempPathFactory, seed: int, weight: float
) -> None:
    base, tuned = pair(tmp_path_factory.mktemp("far"), seed=seed)
    candidates = Candidates(base, tuned, [])
    whole = place_(None, candidates, None).distance
    candidate, maker = as_far(candidates, "interpolation", weight * whole)
    assert float(candidate.strength[:-1]) == pytest.approx(100 * (1 - weight), abs=0.2)
    assert place_(None, candidates, maker).distance == pytest.approx(weight * whole, rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["per-tensor"])
def test_no_other_share_is_nearer_to_the_distance(tmp_path: Path, method: str) -> None:
    base, tuned = pair(tmp_path)
    candidates = Candidates(base, tuned, [])
    wanted = 0.8 * place_(None, candidates, None).distance
    _, maker = as_far(candidates, method, wanted)
    every = candidates.others([Candidate(method, f"{share}%") for share in range(1, 101)])
    distances = [place_(None, every, every.maker(candidate)).distance for candidate in every.wanted]
    assert sorted(distances, reverse=True) == distances
    nearest = min(abs(distance - wanted) for distance in distances)
    assert abs(place_(None, candidates, maker).distance - wanted) <= nearest + 1e-9


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_per_tensor_is_restoring_one_tensor_after_the_other(tmp_path: Path, dtype: str) -> None:
    base, tuned = pair(tmp_path, dtype)
    at = tuned
    for name in sorted(name for name in WEIGHTS if ".layers." in name):
        plan = analyse(base, at, ("20%",), region=f"re:^{name}$").plan
        out = tmp_path / name
        restore_levels(base, at, plan, {"20%": out})
        at = out
    assert read_checkpoint(made(base, tuned, "per-tensor", "20%", tmp_path / "out")) == read_checkpoint(at)


def test_what_is_no_usual_method_is_tried_where_it_is_named() -> None:
    unusual = {"per-tensor", "smallest"}
    assert {name for name in METHODS if not METHODS.get(name).usual} == unusual
    assert not unusual & {candidate.method for candidate in grid()}
    assert {candidate.method for candidate in grid(["smallest"])} == {"smallest", "random"}
