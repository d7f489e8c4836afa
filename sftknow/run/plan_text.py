"""A run's plan in words and tables, for `sftknow run --dry-run`."""

from __future__ import annotations

from collections.abc import Iterator

from sftknow.progress import time_text
from sftknow.report.terminal import text_table
from sftknow.run.gpu_memory import gpu_bytes
from sftknow.run.planning import RunPlan, StageTime
from sftknow.run.space import size_text


def plan_text(plan: RunPlan) -> str:
    """What `--dry-run` prints."""
    return "\n".join(_lines(plan))


def _lines(plan: RunPlan) -> Iterator[str]:
    recipe, now = plan.recipe, plan.now
    yield f"plan of {recipe.name} in {plan.path} (nothing is written there)"
    yield f"  base model: {plan.model_name}" + (
        f", {_count(plan.model.parameters)} parameters stored as {plan.model.dtype}" if plan.model else ""
    )
    if plan.facts is not None:
        split = ", ".join(f"{count:,} {name}" for name, count in plan.facts.items() if count)
        yield f"  facts: {recipe.facts.source} ({split})"
    for line in plan.unread:
        yield f"  could not be read: {line}"
    if now.graded or now.done:
        restored = f", {now.restored} of {now.levels} levels restored" if now.levels else ""
        yield f"  already there: graded, {len(now.done)} of {len(now.cells)} cells done{restored}"
    if plan.bucket_counts is None and any(cell.size is None for cell in now.cells):
        yield "  size `all` is known after the grading; until then a fifth of the training facts stands for each bucket"
    yield ""
    rows = [_row(stage) for stage in plan.stages]
    yield text_table(["stage", "what is left", "time", "rests on"], rows, left=True)
    known = [stage.seconds for stage in plan.stages if stage.seconds is not None]
    if known:
        more = " and what is unknown" if len(known) < len(plan.stages) else ""
        yield f"in all about {time_text(sum(known))}{more}{_side_by_side(plan)}"
    yield ""
    if plan.parts:
        parts = [[part.name, f"{part.count:,}", size_text(part.each), size_text(part.bytes)] for part in plan.parts]
        yield text_table(["disk", "count", "each", "together"], parts)
    need = sum(part.bytes for part in plan.parts)
    if plan.model is None:
        yield f"disk: not known without the model; {size_text(plan.free)} are free"
    else:
        verdict = "" if need <= plan.free else ": TOO LITTLE; the run would refuse to start"
        yield f"in all {size_text(need)}; {size_text(plan.free)} are free{verdict}"
        memory = ", ".join(f"{stage} {size_text(b)}" for stage, b in gpu_bytes(recipe, plan.model).items())
        yield f"GPU memory, roughly, where there is one: {memory}; the other stages need none"
    for note in plan.notes:
        yield f"  {note}"


def _count(parameters: int) -> str:
    if parameters >= 10**9:
        return f"{parameters / 1e9:,.2f} B"
    return f"{parameters / 1e6:,.1f} M"


def _row(stage: StageTime) -> list[str]:
    if stage.seconds == 0:
        return [stage.name, "done", "-", "-"]
    if stage.seconds is None or stage.rate is None:
        return [stage.name, stage.work, "?", "-"]
    return [stage.name, stage.work, time_text(stage.seconds), stage.rate.basis]


def _side_by_side(plan: RunPlan) -> str:
    recipe = plan.recipe
    on_ray = [name for name in ("grading", "grid") if getattr(recipe, name).engine == "ray"]
    if recipe.grid.processes > 1 and not on_ray:
        return f", models in {recipe.grid.processes} processes beside one another"
    return f" on one worker; {' and '.join(on_ray)} share it among Ray's" if on_ray else ", one thing after the other"
