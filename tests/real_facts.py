"""Facts of EntityQuestions for an experiment with a small real model, so that every bucket holds some.

    python -m tests.real_facts MODEL --source entity-questions --out facts.jsonl

A small model knows few facts: taken as they come, hardly any is in the upper buckets. So many facts are looked at
first, each by a few of its statements with one short continuation, and as many are chosen of every number of hits as
the rarest allow. The look only chooses: how well a chosen fact is known is graded afterwards, from nothing, and the
look's continuations play no part in it. What was looked at is on disk as it goes (``OUT.look.jsonl``): a second call
goes on, and one that has looked enough chooses again without the model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sftknow.answers import Synonyms
from sftknow.facts.prompts import statements_for
from sftknow.facts.sources import even_shares, load_facts, rank_of
from sftknow.facts.topics import Topic, load_topics
from sftknow.grading.sampling import SampleRequest
from sftknow.records import Fact, ModelRef, SamplingPolicy

TEMPLATES = (0, 5, 10, 15)
"""Statements of the 21 by which a fact is looked at."""
POLICY = SamplingPolicy(samples=1, max_new_tokens=16, seed=1)
"""Other random numbers than a grading's."""
BLOCK = 2048


def chosen(facts: Sequence[Fact], hits: dict[str, int], sizes: dict[str, int], seed: int) -> Iterator[Fact]:
    """So many facts of each split, as evenly over the numbers of hits as they reach.

    Args:
        facts: to choose from; those without a number of hits are left out.
        hits: by fact id.
        sizes: by split.
        seed: decides which of those with equal hits.
    """
    for split, size in sizes.items():
        by_hits: dict[int, list[Fact]] = {}
        for fact in sorted(facts, key=lambda fact: rank_of(fact.id, seed)):
            if fact.split == split and fact.id in hits:
                by_hits.setdefault(hits[fact.id], []).append(fact)
        shares = even_shares({count: len(by_hits[count]) for count in sorted(by_hits, reverse=True)}, size)
        yield from (fact for count, share in shares.items() for fact in by_hits[count][:share])


def look(model: str, facts: Sequence[Fact], topics: dict[str, Topic], file: Path, device: str, until: float) -> None:
    """Ask facts that the file does not hold yet, block by block, up to a time (of `time.monotonic`)."""
    from sftknow.grading.transformers_sampler import load_sampler

    known = looked(file)
    left = [fact for fact in facts if fact.id not in known]
    if not left:
        return
    if file.is_file():  # what a kill cut off would join the next line
        file.write_text("".join(json.dumps({"id": i, "hits": h}) + "\n" for i, h in known.items()), encoding="utf-8")
    sampler = load_sampler(ModelRef(path=model), device=device)
    for start in range(0, len(left), BLOCK):
        if time.monotonic() > until:
            break
        block = left[start : start + BLOCK]
        requests = [
            SampleRequest(
                fact_id=fact.id,
                template=i,
                prompt=statements_for(topics[fact.topic], fact.subject)[i],
                answers=fact.answers,
            )
            for fact in block
            for i in TEMPLATES
        ]
        found: Counter[str] = Counter()
        for request, tally in zip(requests, sampler.sample(requests, POLICY), strict=True):
            found[request.fact_id] += tally.hits
        with file.open("a", encoding="utf-8") as handle:
            handle.writelines(json.dumps({"id": fact.id, "hits": found[fact.id]}) + "\n" for fact in block)
        print(f"looked at {len(known) + start + len(block):,} of {len(facts):,} facts", flush=True)


def looked(file: Path) -> dict[str, int]:
    """Hits by fact id; what a kill cut off is left out."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else ():
        if line.endswith("\n"):
            row = json.loads(line)
            found[row["id"]] = row["hits"]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Look, choose, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of the base")
    parser.add_argument("--source", default="entity-questions")
    parser.add_argument(
        "--look", type=int, default=40000, help="training facts to look at, and a quarter of it of others"
    )
    parser.add_argument("--train", type=int, default=1600, help="training facts to choose")
    parser.add_argument("--other", type=int, default=400, help="facts to choose of each other split")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="look no longer than that")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True, metavar="FACTS.jsonl")
    asked = parser.parse_args(arguments)
    topics = dict(load_topics())
    read = load_facts(asked.source, topics=topics, synonyms=Synonyms.load(), limit=asked.look)
    facts = sorted(read.facts, key=lambda fact: rank_of(fact.id, 0))
    file = asked.out.with_name(asked.out.name + ".look.jsonl")
    look(asked.model, facts, topics, file, asked.device, time.monotonic() + asked.seconds)
    sizes = {split: asked.train if split == "train" else asked.other for split in read.counts()}
    hits, rows = looked(file), []
    for fact in chosen(facts, hits, sizes, 0):
        row = {name: getattr(fact, name) for name in ("id", "topic", "subject", "object", "question", "split")}
        row = {name: getattr(fact, name) for name in ("id", "topic", "subject", "object", "question", "split")}
        rows.append(row | {"aliases": list(own)} if (own := read.own_aliases.get(fact.id)) else row)
    part = asked.out.with_name(asked.out.name + ".part")
    part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    part.replace(asked.out)
    print(f"{len(rows):,} facts chosen; hits of those looked at: {sorted(Counter(hits.values()).items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
