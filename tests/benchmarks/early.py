"""Deciding early: how often it agrees with the whole grading, and what it saves.

    python -m tests.benchmarks.early --source lab --facts 120 --work early-lab --json early.json
    python -m tests.benchmarks.early --model FOLDER --source FACTS --facts 300 --device cuda --json early-real.json
    python -m tests.benchmarks.early --graded tests/data/smollm2-135m --json early-graded.json

The facts are graded whole, with their continuations, and whole with another seed (how well the whole grading agrees
with itself). A fact that is asked in rounds has the first of the same continuations, so what it would have had early is
counted from these. With ``--work FOLDER`` what was sampled stays there, and the same command goes on after a kill. Of a
data set that was graded with deciding early (``--graded``), only what it saved is told, without its model.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sftknow.answers import Matcher, Synonyms
from sftknow.artifacts.files import read_json
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.facts.prompts import Statements
from sftknow.facts.sources import load_facts
from sftknow.facts.topics import load_topics
from sftknow.grading.sequential import rounds, sure
from sftknow.grading.shards import grade_facts, kept_tallies, plan_shards, sample_shards
from sftknow.grading.transformers_sampler import load_sampler
from sftknow.records import BUCKETS, SPLITS, ModelRef, SamplingPolicy
from sftknow.resources import lab_folder
from sftknow.stats import bucket_of


def agreement(one: dict[str, int], other: dict[str, int]) -> dict[str, Any]:
    """Of the facts, how many are in the same bucket; and by the bucket of the first."""
    by_bucket = {}
    for bucket in BUCKETS:
        here = [other[name] == bucket for name in one if one[name] == bucket]
        by_bucket[bucket] = [sum(here), len(here)]
    same = sum(count for count, _ in by_bucket.values())
    return {"agreement": same / len(one), "same_by_bucket": by_bucket}


def early(outcomes: dict[str, npt.NDArray[np.bool_]], certainty: float) -> tuple[dict[str, int], int]:
    """The bucket of each fact when it is sure, and the tries of all."""
    buckets, tries = {}, 0
    for name, hits in outcomes.items():
        for _, stop in rounds(hits.shape[1]):
            found, seen = int(hits[:, :stop].sum()), hits[:, :stop].size
            if sure(found, seen, hits.size, certainty):
                buckets[name] = bucket_of(found, seen)
                tries += seen
                break
    return buckets, tries


def measure(
    model: str,
    source: str,
    count: int,
    device: str,
    certainties: Sequence[float],
    *,
    policy: SamplingPolicy,
    work: Path,
) -> dict[str, Any]:
    """See the module; ``work`` is the folder of the shards."""
    topics = load_topics()
    facts = load_facts(source, topics=topics, synonyms=Synonyms.load()).facts
    chosen = random.Random(0).sample(facts, min(count, len(facts)))
    statements = [(fact, Statements(topics[fact.topic], fact.subject)) for fact in chosen]
    sampler = load_sampler(ModelRef(path=model), device=device)
    report: dict[str, Any] = {
        "model": Path(model).name,
        "source": Path(source).name,
        "facts": len(chosen),
        "samples": policy.samples,
        "max_new_tokens": policy.max_new_tokens,
        "early": {},
    }
    # Small shards: a kill costs little.
    plan = {"shard_size": 16, "keep_texts": True, "identity": model}
    shards = plan_shards(statements, policy, work / "whole", **plan)
    sample_shards(shards, sampler, policy, keep_texts=True)
    outcomes: dict[str, list[list[bool]]] = {}
    matchers = {fact.id: Matcher(fact.answers) for fact in chosen}
    for tally in kept_tallies(shards, policy):
        hits = [matchers[tally.fact_id].contains(text) for text in tally.texts or ()]
        outcomes.setdefault(tally.fact_id, []).append(hits)
    other = replace(policy, seed=policy.seed + 1)
    again = grade_facts(statements, sampler, other, work / "again", shard_size=16, identity=model)
    tried = {name: np.array(hits) for name, hits in outcomes.items()}
    whole, _ = early(tried, 1.0)
    report["another_seed"] = agreement(whole, {row.fact.id: row.mastery.bucket for row in again})
    for certainty in certainties:
        found, tries = early(tried, certainty)
        saved = 1 - tries / sum(hits.size for hits in tried.values())
        report["early"][certainty] = {**agreement(whole, found), "samples_saved": saved}
    return report


def saved(folder: Path) -> dict[str, Any]:
    """What deciding early saved where a data set was graded so."""
    data, head = MasteryData(folder), read_json(folder / "sftknow.json")
    rows = [row.mastery for split in SPLITS for row in data.split(split)]
    whole = sum(len(row.template_tries) for row in rows) * head["policy"]["samples"]
    return {
        "model": head["graded_by"],
        "source": folder.name,
        "facts": len(rows),
        "samples": head["policy"]["samples"],
        "certainty": head["certainty"],
        "samples_saved": 1 - sum(row.tries for row in rows) / whole,
    }


def show(report: dict[str, Any]) -> None:
    """Print what was measured."""
    print(f"{report['facts']} facts, {report['samples']} samples a statement")
    print("certainty  agreement  samples saved  same bucket, of the facts of buckets 0 … 4")
    rows = [("(seed 1)", report["another_seed"]), *report["early"].items()]
    for name, row in rows:
        less = f"{row['samples_saved']:.1%}" if "samples_saved" in row else "-"
        parts = ", ".join(f"{same}/{of}" for same, of in row["same_by_bucket"].values())
        print(f"{name!s:>9}  {row['agreement']:>9.1%}  {less:>13}  {parts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(lab_folder() / "model"))
    parser.add_argument("--source", default="lab")
    parser.add_argument("--facts", type=int, default=400)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--certainty", type=float, nargs="+", default=[0.9, 0.95, 0.99])
    parser.add_argument("--samples", type=int, default=SamplingPolicy().samples)
    parser.add_argument("--max-new-tokens", type=int, default=SamplingPolicy().max_new_tokens)
    parser.add_argument("--work", type=Path, help="folder of the shards; without it they are thrown away")
    parser.add_argument("--graded", type=Path, help="a data set graded with deciding early: what that saved")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    policy = SamplingPolicy(samples=options.samples, max_new_tokens=options.max_new_tokens)
    if options.graded:
        report = saved(options.graded)
        print(f"{report['facts']} facts at certainty {report['certainty']}: {report['samples_saved']:.1%} saved")
    else:
        asked = (options.model, options.source, options.facts, options.device, options.certainty)
        with tempfile.TemporaryDirectory() as scratch:
            report = measure(*asked, policy=policy, work=options.work or Path(scratch))
        show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
