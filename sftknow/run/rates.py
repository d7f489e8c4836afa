"""How long one unit of each stage takes, and how that is known: measured in the run, or on the spot, or stated."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sftknow.artifacts.files import read_json
from sftknow.artifacts.levels import CONTROLS
from sftknow.errors import RunError
from sftknow.models.loading import load_model, quiet_libraries
from sftknow.recipes.schema import Recipe
from sftknow.records import ModelRef
from sftknow.run.space import ModelSize, saved_dtype

IN_THIS_RUN = "measured in this run"
ON_THE_SPOT = "measured just now"
STATED = "stated"

TOKENS = {"grading": 24, "prompt": 24, "example": 40, "answer": 16}
"""Assumed tokens: of a sampled continuation (32 at most), a question or statement, a training example, an answer."""

EFFICIENCY = {"grading": 0.15, "training": 0.35, "evaluation": 0.15}
"""Assumed share of the device's matrix-product rate that a stage reaches."""

ACCELERATOR = 400e12
"""FLOP/s in matrix products that are assumed of one current data-centre GPU, in 16 bits."""

DISK_RATE, PACK_RATE, RANK_SECONDS = 1.2e9, 190e6, 2.1e-9
"""Bytes/s written, bytes/s of a checkpoint stored as a delta, seconds a parameter ranked: measured on two cores
(`tests.benchmarks.restoration`, `tests.benchmarks.deltas`)."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Seconds of a stage as ``fixed`` + ``each`` × units."""

    fixed: float = 0.0
    each: float = 0.0
    basis: str = STATED

    def seconds(self, units: float) -> float:
        return self.fixed + self.each * units


Rates = Mapping[str, Rate]
"""By stage: ``grading`` (a unit is a sample), ``training`` (a step), ``evaluation`` (a question), ``divergence`` and
``changes`` (a model), ``restoring`` (a checkpoint)."""


def fit(points: Sequence[tuple[float, float]], basis: str) -> Rate:
    """The line of least squares through (units, seconds), with neither part negative."""
    if len({units for units, _ in points}) < 2:
        mean = statistics.fmean(seconds for _, seconds in points)
        return Rate(each=mean / max(statistics.fmean(units for units, _ in points), 1e-9), basis=basis)
    slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
    if intercept < 0 or slope < 0:
        return Rate(each=sum(s for _, s in points) / sum(units for units, _ in points), basis=basis)
    return Rate(fixed=intercept, each=slope, basis=basis)


def rates_of_run(path: Path, questions: int) -> dict[str, Rate]:
    """What the finished stages of a run directory took. A stage that went over several starts counts the pause too.

    Args:
        path: the run directory.
        questions: asked of each model.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for file in sorted((path / "stages").rglob("*.json")):
        if file.name.endswith(".started.json"):
            continue
        try:
            mark = read_json(file)
        except RunError:
            continue
        kind, *rest = file.relative_to(path / "stages").with_suffix("").parts
        seconds, outputs = mark.get("seconds"), mark.get("outputs") or {}
        if not isinstance(seconds, (int, float)):
            continue
        if kind == "models" and "steps" in outputs:
            found.setdefault("training", []).append((outputs["steps"], seconds))
        elif kind == "evaluation" and not rest[0].partition("@")[2].startswith(("layers-", *CONTROLS)):
            found.setdefault("evaluation", []).append((questions, seconds))
        elif kind in ("divergence", "changes"):
            found.setdefault(kind, []).append((1, seconds))
        elif kind == "restored":
            # All levels of a cell are begun together and written in one pass.
            found.setdefault(f"restored/{rest[0]}", []).append((1, seconds))
    passes = [found.pop(name) for name in [*found] if name.startswith("restored/")]
    if passes:
        found["restoring"] = [(len(levels), max(seconds for _, seconds in levels)) for levels in passes]
    return {stage: fit(_typical(points), IN_THIS_RUN) for stage, points in found.items()}


def stated_rates(
    recipe: Recipe,
    model: ModelSize,
    *,
    facts: int,
    flops: Mapping[str, float],
    efficiency: Mapping[str, float] = EFFICIENCY,
) -> dict[str, Rate]:
    """Rates from the number of parameters: 2 FLOP a parameter and token forward, 6 in training.

    Args:
        recipe: what is asked.
        model: the base.
        facts: test facts that divergence looks at.
        flops: FLOP/s in matrix products, by dtype.
        efficiency: what share of that each stage reaches.
    """
    forward = 2.0 * model.parameters
    whole = model.whole(saved_dtype(recipe, model))
    asked = flops[recipe.model.named_dtype or model.dtype or "float32"]
    # A statement is read once for all of its samples.
    sampled = TOKENS["grading"] + TOKENS["prompt"] / recipe.grading.samples
    pack = whole / PACK_RATE if recipe.grid.storage == "delta" else 0.0
    load = whole / DISK_RATE
    example = 3 * forward * TOKENS["example"] / (flops[recipe.sft.compute_dtype] * efficiency["training"])
    answered = forward * (TOKENS["prompt"] + TOKENS["answer"]) / (asked * efficiency["evaluation"])
    # The fine-tuned model is shown two prompts; the base's pass is shared by all.
    first_tokens = 2 * facts * forward * TOKENS["prompt"] / (flops[recipe.divergence.dtype] * efficiency["evaluation"])
    return {
        "grading": Rate(each=forward * sampled / (asked * efficiency["grading"])),
        "training": Rate(fixed=load + pack, each=example * recipe.sft.batch_size),
        "evaluation": Rate(fixed=load, each=answered),
        "divergence": Rate(each=load + first_tokens),
        "changes": Rate(each=model.parameters * RANK_SECONDS),
        "restoring": Rate(each=whole / DISK_RATE),
    }


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.4) -> float:
    """FLOP/s of a matrix product, measured.

    Args:
        device: to compute on.
        dtype: of the matrices.
        seconds: how long to try.
    """
    side = 4096 if device.type == "cuda" else 768
    one = torch.randn(side, side, device=device).to(dtype)

    def product() -> None:
        one @ one
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return 2.0 * side**3 * _times_a_second(product, seconds)


def pass_rate(ref: ModelRef, device: str, rows: int, seconds: float = 3.0) -> float:
    """FLOP/s of a model's own forward passes over so many questions at once, measured.

    Args:
        ref: the model; loaded in its dtype, that of its config where it has none.
        device: to compute on.
        rows: questions in one pass.
        seconds: how long to try.

    Raises:
        ModelError, DeviceError: as `sftknow.models.loading.load_model`.
    """
    with quiet_libraries():
        model = load_model(ref, device=device)
    place = next(model.parameters()).device
    texts = torch.randint(3, 100, (rows, TOKENS["prompt"]), generator=torch.Generator().manual_seed(0)).to(place)
    parameters: int = sum(p.numel() for p in model.parameters())
    with torch.inference_mode():
        passes = _times_a_second(
            lambda: model(input_ids=texts, use_cache=False).logits[0, 0, 0].item(),  # waits for the device
            seconds,
        )
    return 2.0 * parameters * texts.numel() * passes


def _times_a_second(work: Callable[[], object], seconds: float) -> float:
    """How often some work is done in a second, tried for so long; the first time warms up."""
    work()
    count, began = 0, time.monotonic()
    while count < 1 or time.monotonic() - began < seconds:
        work()
        count += 1
    return count / (time.monotonic() - began)


def _typical(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without what a pause or a first compilation blew up: more than three times the median of the same size."""
    by_units: dict[float, list[float]] = {}
    for units, seconds in points:
        by_units.setdefault(units, []).append(seconds)
    return [(u, s) for u, found in by_units.items() for s in found if s <= 3 * statistics.median(found)]
