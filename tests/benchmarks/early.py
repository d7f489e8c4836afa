"""Deciding early: how often it agrees with the whole grading, and what it saves.

    python -m tests.benchmarks.early --source lab --facts 400 --json early.json
    python -m tests.benchmarks.early --model FOLDER --source quick --facts 200 --device cuda

The same facts are graded whole, whole with another seed (how well the whole grading agrees with itself), and early.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sftknow.answers import Synonyms
from sftknow.facts.prompts import Statements
from sftknow.facts.sources import load_facts
from sftknow.facts.topics import load_topics
from sftknow.grading.sequential import EarlyGrading
from sftknow.grading.shards import grade_facts
from sftknow.grading.transformers_sampler import load_sampler
from sftknow.records import BUCKETS, Mastery, ModelRef, SamplingPolicy
from sftknow.resources import lab_folder


def agreement(one: dict[str, Mastery], other: dict[str, Mastery]) -> dict[str, Any]:
    """Of the facts, how many are in the same bucket; and by the bucket of the first."""
    same = {name: one[name].bucket == other[name].bucket for name in one}
    by_bucket = {}
    for bucket in BUCKETS:
        here = [same[name] for name in one if one[name].bucket == bucket]
        by_bucket[bucket] = [sum(here), len(here)]
    return {"agreement": sum(same.values()) / len(same), "same_by_bucket": by_bucket}


def measure(model: str, source: str, count: int, device: str, certainties: Sequence[float]) -> dict[str, Any]:
    topics, policy = load_topics(), SamplingPolicy()
    facts = load_facts(source, topics=topics, synonyms=Synonyms.load()).facts
    chosen = random.Random(0).sample(facts, min(count, len(facts)))
    statements = [(fact, Statements(topics[fact.topic], fact.subject)) for fact in chosen]
    sampler = load_sampler(ModelRef(path=model), device=device)
    report: dict[str, Any] = {"model": model, "source": source, "facts": len(chosen), "early": {}}
    with tempfile.TemporaryDirectory() as name:
        graded = {}
        for seed in (0, 1):
            began = time.perf_counter()
            rows = grade_facts(statements, sampler, SamplingPolicy(seed=seed), Path(name) / f"whole-{seed}")
            graded[seed] = {row.fact.id: row.mastery for row in rows}
            report["whole_seconds"] = time.perf_counter() - began
        whole = graded[0]
        tries = sum(mastery.tries for mastery in whole.values())
        report["another_seed"] = agreement(whole, graded[1])
        for certainty in certainties:
            began = time.perf_counter()
            early = EarlyGrading(
                statements=statements, policy=policy, folder=Path(name) / f"early-{certainty}", certainty=certainty,
                shard_size=256, keep_texts=False, templates=None, identity="",
            )  # fmt: skip
            early.sample(lambda left: sampler)
            found = {row.fact.id: row.mastery for row in early.facts()}
            report["early"][certainty] = {
                **agreement(whole, found),
                "samples_saved": 1 - sum(mastery.tries for mastery in found.values()) / tries,
                "seconds": time.perf_counter() - began,
            }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(lab_folder() / "model"))
    parser.add_argument("--source", default="lab")
    parser.add_argument("--facts", type=int, default=400)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--certainty", type=float, nargs="+", default=[0.9, 0.95, 0.99])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = measure(options.model, options.source, options.facts, options.device, options.certainty)
    print(f"{report['facts']} facts, whole grading in {report['whole_seconds']:.0f} s")
    print("certainty  agreement  samples saved  seconds  same bucket, of the facts of buckets 0 … 4")
    rows = [("(seed 1)", report["another_seed"]), *report["early"].items()]
    for name, row in rows:
        saved = f"{row['samples_saved']:.1%}" if "samples_saved" in row else "-"
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else "-"
        parts = ", ".join(f"{same}/{of}" for same, of in row["same_by_bucket"].values())
        print(f"{name!s:>9}  {row['agreement']:>9.1%}  {saved:>13}  {seconds:>7}  {parts}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
