"""How much of a fine-tuned model's gain is format: the base shown solved examples, and facts graded again.

A base has never seen the prompt of fine-tuning, so a part of any gain is that it learns what an answer looks like. Two
measurements tell it apart from knowledge. The base answers the same questions with solved training questions before
each. And some of the in-domain test facts are graded again by the chosen model, unrestored and restored, in the
statements and with the random numbers that the base was graded with: no form of an answer plays a part there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sftknow.artifacts.files import digest, write_json
from sftknow.artifacts.knowledge import EXAMPLES, KNOWLEDGE
from sftknow.artifacts.scores import write_eval
from sftknow.checking.kept import Hits, by_level, kept_share
from sftknow.evaluation.examples import FEWSHOT_SEED
from sftknow.evaluation.greedy import MAX_NEW_TOKENS
from sftknow.evaluation.harness import Harness
from sftknow.facts.prompts import Statements
from sftknow.facts.sources import balanced
from sftknow.grading.shards import graded_facts, plan_shards, sample_shards
from sftknow.models.limits import most_positions
from sftknow.models.loading import load_config, load_tokenizer
from sftknow.models.resolving import BaseModel
from sftknow.prompts import prompt_ids
from sftknow.records import BUCKETS, EvalRun, GradedFact, Split
from sftknow.run.replicas import load_sampler
from sftknow.run.steps import Step
from sftknow.run.workbench import Workbench
from sftknow.stats import bucket_of


def shown_examples(bench: Workbench) -> Step | None:
    """Score the base with solved training questions before each question; None where it cannot be asked so.

    Each question has examples of its own, drawn by a seed that is the same for all runs; that they are few is said.
    """
    count, base = bench.recipe.evaluation.examples, bench.base
    splits: list[Split] = [s for s in bench.recipe.evaluation.splits if s in ("test", "testood")]
    data = bench.dataset
    splits = [split for split in splits if any(data.count(split, bucket) for bucket in BUCKETS)]
    if not count or not splits:
        return None
    positions, longest = most_positions(load_config(base.ref)), _longest(bench)
    if positions is not None and (count + 1) * longest + MAX_NEW_TOKENS > positions:
        bench.say(f"{base.name} reads {positions} tokens, too few for {count} solved examples before a question")
        return None
    stage = bench.directory.stage(
        f"evaluation/{EXAMPLES}",
        {
            "weights": base.sha256,
            "dtype": bench.recipe.model.dtype,
            "batch_size": bench.recipe.model.batch_size,
            "data": data.fingerprint,
            "splits": splits,
            "limit": bench.recipe.evaluation.limit,
            "examples": [count, FEWSHOT_SEED],
        },
    )

    def work(folder: Path) -> None:
        write_eval(folder, _ask(bench, splits, folder))

    return Step.of(stage, f"evaluating the base with {count} solved examples before each question", work)


def _ask(bench: Workbench, splits: Sequence[Split], folder: Path) -> EvalRun:
    recipe = bench.recipe
    harness = Harness(
        bench.dataset.folder,
        splits=splits,
        batch_size=recipe.model.batch_size,
        device=recipe.model.device,
        limit=recipe.evaluation.limit,
        few_shot=recipe.evaluation.examples,
    )
    ref = bench.ref(Path(bench.base.ref.path))
    return harness.score_path(ref, name=EXAMPLES, work=folder, key=f"{bench.base.sha256}/{EXAMPLES}")


def _longest(bench: Workbench) -> int:
    """Tokens of the longest solved example, near enough: the longest question's prompt and as long an answer."""
    tokenizer = load_tokenizer(bench.base.ref)
    rows = [row.fact for split in ("train", "test", "testood") for row in bench.dataset.split(split)]
    longest = sorted(rows, key=lambda fact: -len(fact.question) - len(fact.object))[:8]
    return max((len(prompt_ids(tokenizer, f"{fact.question} {fact.object}")) for fact in longest), default=0) + 4


def graded_again(bench: Workbench, name: str, folder: Path, weights: str) -> Step | None:
    """Grade in-domain test facts by a fine-tuned or restored model, as the base was graded; None where none is asked.

    Args:
        bench: the run.
        name: what the run calls the model.
        folder: with its whole weights.
        weights: what identifies them.
    """
    section, most = bench.recipe.grading, bench.recipe.evaluation.regrade
    if section.certainty is not None:
        return None  # the base was not asked all continuations of a statement, so there is nothing to set beside
    by_id = {row.fact.id: row for row in bench.dataset.split("test")}
    facts = balanced([row.fact for row in by_id.values()], section.seed)[:most]
    if not facts:
        return None
    inputs = {
        "weights": weights,
        "dtype": bench.recipe.model.dtype,
        "data": bench.dataset.fingerprint,
        "facts": digest([fact.id for fact in facts]),
    }

    def work(out: Path) -> None:
        model = BaseModel(ref=bench.ref(folder), name=name, sha256=weights)
        shards = plan_shards(
            [(fact, Statements(bench.topics[fact.topic], fact.subject)) for fact in facts],
            section.policy,
            out,
            shard_size=section.shard_size,
            templates=section.templates,
            identity=f"{weights}/{model.ref.dtype}/{section.sampler}/{digest(section.rule)}",
        )
        here = replace(section, engine="local")  # a few hundred facts: not worth a cluster
        sampler = load_sampler(model, here, device=bench.recipe.model.device, rule=section.rule)
        sample_shards(shards, sampler, section.policy, title=f"grading {name}")
        after = list(graded_facts(shards, section.policy))
        write_json(out / KNOWLEDGE, summary(name, [by_id[row.fact.id] for row in after], after))

    title = f"what does {name} still complete of what the base does?"
    return Step.of(bench.directory.stage(f"knowledge/{name}", inputs), title, work)


def summary(name: str, before: Sequence[GradedFact], after: Sequence[GradedFact]) -> dict[str, Any]:
    """What came of it, as ``knowledge.json`` holds it.

    Args:
        name: of the model.
        before: as the base was graded.
        after: the same facts, in the same order, as the model was.
    """
    most = max(len(row.mastery.template_hits) for row in before)

    def table(rows: Sequence[GradedFact], field: str) -> np.ndarray:
        values = [getattr(row.mastery, field) for row in rows]
        return np.array([[*v, *[0] * (most - len(v))] for v in values], dtype=np.int64)

    tried = table(before, "template_tries")
    hits = Hits(before=table(before, "template_hits"), after=table(after, "template_hits"), tries=tried)
    tries = hits.tries.sum(1)
    first, second = bucket_of(hits.before.sum(1), tries), bucket_of(hits.after.sum(1), tries)
    kept = kept_share(hits)
    told = kept is not None and bool(np.isfinite(kept.low))
    return {
        "model": name,
        "facts": len(before),
        "before": float((hits.before.sum(1) / tries).mean()),
        "after": float((hits.after.sum(1) / tries).mean()),
        "flow": [[int(((first == b) & (second == a)).sum()) for a in BUCKETS] for b in BUCKETS],
        "by_level": [list(row) for row in by_level(hits)],
        "kept": kept.share if kept else None,
        "low": kept.low if kept and told else None,
        "high": kept.high if kept and told else None,
    }
