"""Draw the facts of ``--facts quick`` from EntityQuestions anew.

    python -m tests.quick_facts FOLDER        # a folder laid out like the release

It writes sftknow/facts/quick/facts.parquet.
Of each of the 24 relations 50 facts are drawn at random from those that the paper's filters leave: of an in-domain
relation 30 from the training files, 8 from dev and 12 from test; of an out-of-domain relation 50 from test.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.answers import Synonyms
from sftknow.facts.sources import FactSet, load_facts
from sftknow.facts.topics import load_topics
from sftknow.records import Fact
from sftknow.resources import quick_facts_file

SEED = 0
SHARES = {"train": 30, "dev": 8, "test": 12, "testood": 50}


def draw(release: FactSet) -> list[Fact]:
    """The facts, in the order of the release."""
    found = []
    for (split, topic), rows in groupby(release.facts, key=lambda fact: (fact.split, fact.topic)):
        facts = list(rows)
        chosen = random.Random(f"{SEED}/{split}/{topic}").sample(range(len(facts)), SHARES[split])
        found += [facts[i] for i in sorted(chosen)]
    return found


def table(facts: Iterable[Fact]) -> pa.Table:
    """As it is stored. The synonym table's names are added again when it is read."""
    columns = {"id": "id", "relation": "topic", "subject": "subject", "object": "object", "question": "question"}
    rows = list(facts)
    return pa.table({name: [getattr(fact, of) for fact in rows] for name, of in {**columns, "split": "split"}.items()})


def main() -> None:
    """Write the file."""
    release = load_facts(sys.argv[1], topics=load_topics(), synonyms=Synonyms.load())
    if not release.official:
        sys.exit(f"{sys.argv[1]} is not the official release")
    file = quick_facts_file()
    pq.write_table(table(draw(release)), file, compression="zstd", compression_level=19)
    print(f"{file}: {Path(file).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
