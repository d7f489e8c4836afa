"""docs/costs.md: GPU memory and hours of every stage for models of four sizes, from the estimator of `--dry-run`.

``python -m tests.costs`` writes it; a test compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sftknow.progress import time_text
from sftknow.recipes.load import load_recipe
from sftknow.run.gpu_memory import CONTEXT, MARGIN, gpu_bytes
from sftknow.run.planning import OFFICIAL_COUNTS, STORED, RunPlan, add_times
from sftknow.run.rates import ACCELERATOR, EFFICIENCY, TOKENS, stated_rates
from sftknow.run.space import ModelSize, size_text
from sftknow.run.standing import nothing_done

PAGE = Path(__file__).resolve().parents[1] / "docs" / "costs.md"
MODELS = {
    "135 M (SmolLM2-135M)": ModelSize(parameters=134_515_008, dtype="bfloat16"),
    "1 B (Llama-3.2-1B)": ModelSize(parameters=1_235_814_400, dtype="bfloat16"),
    "8 B (LLaMA-3-8B)": STORED["LLaMA-3-8B"],
    "70 B (LLaMA-3-70B)": STORED["LLaMA-3-70B"],
}
_STATEMENTS = 21


def plan_of(model: ModelSize) -> RunPlan:
    """The plan of `any-model` on the facts of the official EntityQuestions release, with times for one accelerator."""
    recipe = load_recipe("any-model", ["facts.source=entity-questions"])
    plan = RunPlan(recipe=recipe, path=Path("runs"), now=nothing_done(recipe), model=model)
    plan.facts = dict(OFFICIAL_COUNTS)
    plan.statements = _STATEMENTS * sum(OFFICIAL_COUNTS.values())
    flops = dict.fromkeys(("float32", "bfloat16", "float16"), ACCELERATOR)
    add_times(plan, stated_rates(recipe, model, facts=OFFICIAL_COUNTS["test"], flops=flops))
    return plan


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a header."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page() -> str:
    """The whole page."""
    plans = {name: plan_of(model) for name, model in MODELS.items()}
    first = next(iter(plans.values()))
    stages = [stage.name for stage in first.stages]
    memory = {name: gpu_bytes(plan.recipe, MODELS[name]) for name, plan in plans.items()}
    rows = [
        [stage, *(size_text(memory[name][stage]) if stage in memory[name] else "none" for name in plans)]
        for stage in stages
        if stage != "controls"
    ]
    hours = [
        [
            stage,
            first.stages[number].work,
            *(time_text(plan.stages[number].seconds or 0) for plan in plans.values()),
        ]
        for number, stage in enumerate(stages)
    ]
    total = [sum(stage.seconds or 0 for stage in plan.stages) for plan in plans.values()]
    hours.append(["in all", "", *map(time_text, total)])
    shares = ", ".join(f"{share:.0%} in {name}" for name, share in EFFICIENCY.items())
    facts = f"{sum(OFFICIAL_COUNTS.values()):,} facts of EntityQuestions"
    return f"""# GPU memory and hours

<!-- from python -m tests.costs -->
Estimates, not measurements: what `sftknow run --dry-run` computes where nothing has run yet, for the recipe
`any-model` ({len(first.now.cells)} models) on the {facts}. For your own model, facts and grid ask the command:

```bash
sftknow run any-model --model org/name --facts facts.jsonl --dry-run
sftknow grade org/name --facts facts.jsonl --dry-run
```

## GPU memory

Of all GPUs together that share one copy of the model (`grading.vllm.tensor_parallel`, `accelerate.config`).

{markdown_table(["stage", *plans], rows)}

Counted are the weights; in training gradients and AdamW's two moments too, in `sft.load_dtype`
({first.recipe.sft.load_dtype}; `bfloat16` halves it); on top of that {MARGIN:.0%} for activations, caches and logits,
and {size_text(CONTEXT)}. Ranking and restoring stream the files and stay within `--memory`.

## Hours

On one accelerator of {ACCELERATOR / 1e12:.0f} TFLOP/s; grading and grid are shared among machines with `engine: ray`.

{markdown_table(["stage", "work", *plans], hours)}

Assumed: 2 FLOP a parameter and token, 6 in training; efficiency {shares};
{TOKENS["grading"]} tokens of a sampled continuation and of a prompt, {TOKENS["example"]} of a training example,
{TOKENS["answer"]} of an answer. A real run tells its own time left from its second model on.

<!-- end -->

This page is written by `python -m tests.costs`.
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
