"""A strategy from outside the package, from the analysis to the command line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sftknow.artifacts.levels import parse_level
from sftknow.cli.main import main
from sftknow.errors import CheckpointError, RecipeError
from sftknow.parameters import passes
from sftknow.parameters.change import analyse
from sftknow.parameters.options import Resources
from sftknow.parameters.restore import restore_levels
from sftknow.parameters.strategies import STRATEGIES, check_strategy
from sftknow.recipes.load import load_recipe
from tests.parameters.checkpoint_pairs import Plain, Tensor, read_checkpoint, stored, write_checkpoint
from tests.test_registry import plug_in

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "extending" / "strategy.md"
LEVELS = ("0%", "1%", "20%", "1/3", "100%")
NAMES = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values with many ties in \\|p\\|, both zeros among them; the second tensor of two dtypes."""
    rng = np.random.default_rng(0)
    base, tuned = {}, {}
    for name, dtype in zip(NAMES, ("BF16", "F32"), strict=True):
        p = rng.choice(np.float32([0, -0.0, 0.5, -0.5, 1, -1, 2, 1e-3]), (40, 31))
        base[name], tuned[name] = stored(p, "BF16"), stored(np.where(rng.random(p.shape) < 0.4, p * 1.25, p), dtype)
    write_checkpoint(tmp_path / "base", base)
    write_checkpoint(tmp_path / "tuned", tuned)
    return base, tuned


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The documented example, as another package that is installed."""
    text = re.findall(r"```python\n(.*?)```", EXAMPLE.read_text(), re.DOTALL)[0]
    (tmp_path / "site").mkdir()
    plug_in(tmp_path / "site", "smallest_base_of_mine", text)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield "smallest-base"
    STRATEGIES.remove("smallest-base")
    sys.modules.pop("smallest_base_of_mine", None)


def masks(base: dict[str, Tensor], tuned: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """By level the elements with the smallest \\|p\\|, by a stable sort."""
    plain = Plain(base, tuned, NAMES)
    plain.order = np.argsort(np.abs(plain.p), kind="stable")
    return {level: plain.selected(parse_level(level)) for level in LEVELS}


def test_smallest_base_first(
    tmp_path: Path, pair: tuple[dict[str, Tensor], dict[str, Tensor]], installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = pair
    monkeypatch.setattr(passes, "PIECE", 100)
    resources = Resources(threads=3, block=37, window=4096)
    found = analyse(tmp_path / "base", tmp_path / "tuned", LEVELS, strategy=installed, resources=resources)
    outputs = {level: tmp_path / "out" / level.replace("/", "-") for level in LEVELS}
    restore_levels(tmp_path / "base", tmp_path / "tuned", found.plan, outputs, resources=resources)
    wanted, plain, before = masks(base, tuned), Plain(base, tuned, NAMES), np.zeros(2 * 40 * 31, dtype=bool)
    for i, level in enumerate(LEVELS):
        mask, statistics = wanted[level], found.change.levels[i]
        assert statistics.selected == mask.sum()
        assert statistics.selected_unchanged == (mask & (plain.p == plain.s)).sum()
        assert statistics.concentration == plain.concentration(mask, np.ones(mask.size, dtype=bool))
        assert {tensor.name: tensor.selected[i] for tensor in found.tensors} == plain.per_tensor(mask)
        assert not (before & ~mask).any(), "nested"
        before = mask
        written = read_checkpoint(outputs[level])
        for name, part in zip(NAMES, np.split(mask, 2), strict=True):
            dtype, bits = tuned[name]
            restored = base[name][1] if dtype == "BF16" else base[name][1].astype(np.uint32) << 16
            assert written[name] == np.where(part.reshape(bits.shape), restored, bits).tobytes()


def test_the_command_line_offers_it(
    tmp_path: Path,
    pair: tuple[dict[str, Tensor], dict[str, Tensor]],
    installed: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, tuned = pair
    folders = str(tmp_path / "base"), str(tmp_path / "tuned")
    out = tmp_path / "out"
    assert main(["restore", *folders, "--top", "20%", "--strategy", installed, "--out", str(out)]) in (0, None)
    assert json.loads((out / "sftknow.json").read_text())["restoration"]["strategy"] == installed
    part = np.split(masks(base, tuned)["20%"], 2)[0].reshape(40, 31)
    assert read_checkpoint(out)[NAMES[0]] == np.where(part, base[NAMES[0]][1], tuned[NAMES[0]][1]).tobytes()
    with pytest.raises(SystemExit):
        main(["restore", "--help"])
    assert "top, bottom, random, absolute, trim, smallest, smallest-base" in re.sub(
        r"\s+", " ", capsys.readouterr().out
    )
    assert main(["restore", *folders, "--top", "20%", "--strategy", "largest", "--out", str(out)]) == 2
    known = "'top', 'bottom', 'random', 'absolute', 'trim', 'smallest' or 'smallest-base'"
    assert capsys.readouterr().err == f"sftknow: --strategy should be {known}, not 'largest'\n"
    assert load_recipe("lab", [f"parameters.strategy={installed}"]).parameters.strategy == installed
    with pytest.raises(RecipeError, match=f"parameters.strategy should be {known}, not 'largest'"):
        load_recipe("lab", ["parameters.strategy=largest"])


@pytest.mark.parametrize("strategy", ["top", "bottom"])
def test_keys_give_what_one_pass_gives(
    tmp_path: Path, pair: tuple[dict[str, Tensor], dict[str, Tensor]], strategy: str
) -> None:
    """The shipped orders of r under another name go the way of all others, and come to the same."""
    STRATEGIES.register("same")(STRATEGIES.get(strategy))
    try:
        other = analyse(tmp_path / "base", tmp_path / "tuned", LEVELS, strategy="same")
    finally:
        STRATEGIES.remove("same")
    known = analyse(tmp_path / "base", tmp_path / "tuned", LEVELS, strategy=strategy)
    assert other.change == known.change
    assert [tensor.selected for tensor in other.tensors] == [tensor.selected for tensor in known.tensors]
    assert [cut.tie_end for cut in other.plan.cuts] == [cut.tie_end for cut in known.plan.cuts]


def test_an_unknown_strategy_is_named() -> None:
    with pytest.raises(CheckpointError, match="unknown strategy 'largest'; use one of top, bottom, random"):
        check_strategy("largest")
