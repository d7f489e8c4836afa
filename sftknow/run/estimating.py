"""How long each stage of a planned run takes: from its own stages, a few batches, or the size of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from sftknow.grading.estimate import SECONDS
from sftknow.machine import free_memory
from sftknow.models.loading import find_device
from sftknow.records import ModelRef
from sftknow.run.rates import (
    ACCELERATOR,
    EFFICIENCY,
    ON_THE_SPOT,
    STATED,
    Rate,
    matrix_rate,
    pass_rate,
    rates_of_run,
    stated_rates,
)

if TYPE_CHECKING:
    from sftknow.run.planning import RunPlan
    from sftknow.run.workbench import Workbench

_LARGE = 1_000_000_000
"""Parameters from which times on a machine without a GPU are told for one that has one."""


def best_rates(
    plan: RunPlan,
    bench: Workbench | None,
    say: Callable[[str], None],
    measure: Callable[[Workbench], dict[str, Rate]] | None,
) -> dict[str, Rate]:
    """The best that is known of each stage: measured in this run, else on the spot, else stated."""
    if plan.model is None:
        return {}
    recipe = plan.recipe
    known = rates_of_run(plan.path, plan.questions or 0) if plan.questions else {}
    if "evaluation" in known and plan.now.graded:
        known.setdefault("grading", Rate())
    missing = {"grading", "training", "evaluation", "divergence", "changes", "restoring"} - known.keys()
    if not missing:
        return known
    if bench is not None and plan.facts is not None and not plan.unread:
        from sftknow.run.calibrating import calibrate, small_enough

        if measure is not None or (small_enough(plan.model, recipe.model.device) and recipe.grading.sampler != "vllm"):
            say("measuring a few batches of every stage, in a temporary folder")
            return (measure or calibrate)(bench) | known
    here = find_device("auto")
    away = here.type == "cpu" and plan.model.parameters >= _LARGE
    if away:
        flops = dict.fromkeys(("float32", "bfloat16", "float16"), ACCELERATOR)
        plan.notes.append(
            f"{STATED} times are for one accelerator of {ACCELERATOR / 1e12:.0f} TFLOP/s, as this machine has none; "
            "several work side by side (grid.engine, grading.engine, accelerate)"
        )
    else:
        say("measuring a matrix product")
        flops = {name: matrix_rate(here, getattr(torch, name)) for name in ("float32", "bfloat16")}
        flops["float16"] = flops["bfloat16"]
        measured = ", ".join(f"{flops[name] / 1e9:,.0f} GFLOP/s in {name}" for name in ("float32", "bfloat16"))
        plan.notes.append(f"a matrix product does {measured} here (measured just now)")
    own: dict[str, float] = {}
    here_is_all = bench is not None and not away and plan.facts is not None and not plan.unread
    tried = bench if here_is_all and _fits(plan) else None
    if tried is not None:
        own = _own_efficiency(plan, tried, flops, say)
    shares = ", ".join(f"{share:.0%} in {name}" for name, share in EFFICIENCY.items() if name not in own)
    of_pass = f" ({' and '.join(own)}: that of the pass)" if own else ""
    plan.notes.append(
        f"{STATED}: 2 FLOP a parameter and token, 6 in training; assumed efficiency {shares}{of_pass}; 1.2 GB/s of disk"
    )
    test = plan.facts["test"] if plan.facts else 0
    stated = stated_rates(recipe, plan.model, facts=test, flops=flops, efficiency=EFFICIENCY | own)
    if tried is not None and "grading" in missing:
        stated["grading"] = _grading_rate(plan, tried, say)
    return stated | known


def _fits(plan: RunPlan) -> bool:
    """Whether the model fits into memory beside what is there; says where it does not."""
    assert plan.model is not None
    free = free_memory()
    on_cpu = find_device(plan.recipe.model.device).type == "cpu"
    if on_cpu and free is not None and 4 * plan.model.parameters > free / 2:
        plan.notes.append("the model fills more than half of the free memory, so that nothing was tried with it")
        return False
    return True


def _own_efficiency(
    plan: RunPlan, bench: Workbench, flops: Mapping[str, float], say: Callable[[str], None]
) -> dict[str, float]:
    """What share of a matrix product's rate the model's own passes reach: of scoring and of training."""
    assert plan.model is not None
    model = plan.recipe.model
    say("a few forward passes of the model")
    dtype = model.named_dtype or plan.model.dtype or "float32"
    found = pass_rate(ModelRef(path=bench.base.ref.path, dtype=dtype), model.device, min(model.batch_size, 16))
    share = found / flops[dtype]
    plan.notes.append(f"a forward pass of the model does {found / 1e9:,.0f}, {share:.0%} of it ({ON_THE_SPOT})")
    # Backward passes are matrix products of the same shapes.
    return {"training": share, "evaluation": share}


def _grading_rate(plan: RunPlan, bench: Workbench, say: Callable[[str], None]) -> Rate:
    """A few statements graded."""
    from sftknow.run.grading import statement_seconds

    section, device = plan.recipe.grading, plan.recipe.model.device
    say(f"grading a few statements, at most {SECONDS:.0f} s")
    each = statement_seconds(bench.base, bench.facts, bench.topics, section, device=device)
    plan.notes.append(f"grading: {1 / each:,.2f} statements a second ({ON_THE_SPOT}, with this model on this machine)")
    return Rate(each=each / section.samples, basis=ON_THE_SPOT)
