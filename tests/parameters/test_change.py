from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from sftknow.parameters.change import analyse
from sftknow.parameters.options import Resources
from tests.parameters.checkpoint_pairs import stored, write_checkpoint

Q = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


def test_a_case_worked_by_hand(tmp_path: Path) -> None:
    """r: 0.5, 0, 0.25, 1e6 (from zero) | 0.25, 2."""
    write_checkpoint(tmp_path / "base", {Q: stored([[2, 1], [4, 0]], "F32"), DOWN: stored([-4, 1], "F32")})
    write_checkpoint(tmp_path / "tuned", {DOWN: stored([-3, 3], "F32"), Q: stored([[3, 1], [5, 0.01]], "F32")})
    found = analyse(tmp_path / "base", tmp_path / "tuned", ["50%", "2/3", "100%"])
    change = found.change
    assert (change.elements, change.changed) == (6, 5)
    assert change.elements_by_layer == {"0": 4, "1": 2}
    assert change.elements_by_module == {"mlp.down_proj": 2, "self_attn.q_proj": 4}
    half, two_thirds, everything = change.levels
    assert (half.selected, half.selected_unchanged) == (3, 0)  # 1e6, 2, 0.5
    assert half.by_layer == {"0": 2, "1": 1}
    assert half.by_module == {"mlp.down_proj": 1, "self_attn.q_proj": 2}
    assert half.concentration == pytest.approx(1, abs=1e-6)
    assert half.concentration_nonzero_base == pytest.approx(2.5 / 3)
    assert two_thirds.by_layer == {"0": 3, "1": 1}  # of the two 0.25 the first in order
    assert found.plan.cuts[1].ties == 1
    assert found.plan.cuts[1].threshold_bits == np.float32(0.25).view(np.uint32)
    assert (everything.selected, everything.selected_unchanged, everything.concentration) == (6, 1, 1.0)
    assert [count for _, count in change.histogram if count] == [2, 1, 1, 1]
    assert [(tensor.name, tensor.changed, tensor.selected) for tensor in found.tensors] == [
        (Q, 3, (2, 3, 4)),
        (DOWN, 2, (1, 1, 2)),
    ]


def test_epsilon_zero_ranks_a_zero_that_moved_first(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", {Q: stored([1, 0, 0, 1e-30], "F32")})
    write_checkpoint(tmp_path / "tuned", {Q: stored([9, 0, 1e-30, 1], "F32")})
    found = analyse(tmp_path / "base", tmp_path / "tuned", ["25%", "50%", "100%"], epsilon=0)
    first = found.plan.cuts[0]
    assert (first.threshold_bits, first.ties) == (np.float32(np.inf).view(np.uint32), 1)
    assert all(np.isnan(level.concentration) for level in found.change.levels)
    assert found.change.levels[1].concentration_nonzero_base == pytest.approx(1)
    assert found.change.histogram[-1] == (np.inf, 1)


def test_hashes_know_the_bytes_and_not_the_shards(tmp_path: Path) -> None:
    tensors = {Q: stored([1, 2], "BF16"), DOWN: stored([3, 4], "BF16"), "model.norm.weight": stored([1], "BF16")}
    other = {**tensors, Q: stored([1, 3], "BF16")}
    write_checkpoint(tmp_path / "base", tensors)
    write_checkpoint(tmp_path / "split", tensors, shards=3)
    write_checkpoint(tmp_path / "other", other)
    write_checkpoint(tmp_path / "norm", {**other, "model.norm.weight": stored([2], "BF16")})
    whole = analyse(tmp_path / "base", tmp_path / "other", ["50%"]).plan
    assert analyse(tmp_path / "split", tmp_path / "norm", ["50%"], resources=Resources(block=1)).plan == whole
    assert whole.base_sha256 != whole.tuned_sha256


def test_long_work_shows_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    write_checkpoint(tmp_path / "base", {Q: stored([1, 2], "BF16")})
    write_checkpoint(tmp_path / "tuned", {Q: stored([1, 3], "BF16")})
    analyse(tmp_path / "base", tmp_path / "tuned", ["50%"])
    assert capsys.readouterr().err == ""
    for strategy in ("top", "random"):
        analyse(tmp_path / "base", tmp_path / "tuned", ["50%"], strategy=strategy, resources=Resources(quiet=0))
        assert "2/2" in capsys.readouterr().err
