"""Peak memory and time of everything in grading but the model: load, shards, graded data set.

    python -m tests.benchmarks.grading_memory --facts 10000 97112 --json memory.json

Every size runs in a process of its own, on synthetic facts in a JSONL file, with a sampler that draws nothing.
``start`` is what the process holds before it reads a fact (Python, torch, pyarrow); ``grown`` is what the work adds at
its peak.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sftknow.grading.sampling import SampleRequest
from sftknow.records import SampleTally, SamplingPolicy

TEXT = " the {place} region, which was founded in the early years of the nineteenth century by settlers, and it is {n}"


class NoModel:
    """Tallies that are a function of the statement."""

    def sample(
        self,
        requests: Sequence[SampleRequest],
        policy: SamplingPolicy,
        *,
        keep_texts: bool = False,
        on_done: Callable[[int], None] | None = None,
    ) -> list[SampleTally]:
        tallies = []
        for request in requests:
            seed = hashlib.sha256(request.prompt.encode()).digest()
            texts = tuple(TEXT.format(place=request.answers[0], n=seed[i]) for i in range(policy.samples))
            tallies.append(
                SampleTally(
                    fact_id=request.fact_id,
                    template=request.template,
                    tries=policy.samples,
                    hits=seed[0] % (policy.samples + 1),
                    texts=texts if keep_texts else None,
                )
            )
        if on_done is not None:
            on_done(len(requests))
        return tallies


def peak_mb() -> float:
    """Peak resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(count: int, folder: Path, *, keep_texts: bool) -> dict[str, Any]:
    """Grade that many facts in this process."""
    import sftknow.run.grading as grading
    from sftknow.answers import Synonyms
    from sftknow.artifacts.mastery_data import MasteryData
    from sftknow.facts.sources import load_facts
    from sftknow.facts.topics import load_topics
    from sftknow.grading.options import GradingOptions
    from sftknow.models.resolving import BaseModel
    from sftknow.records import ModelRef
    from sftknow.resources import lab_folder

    file = folder / "facts.jsonl"
    topics = load_topics()
    relations = [name for name, topic in topics.items() if topic.domain == "in-domain"]
    with file.open("w") as out:
        for i in range(count):
            row = {"subject": f"The place number {i}", "topic": relations[i % 10], "object": f"Object {i % 5000}"}
            out.write(json.dumps(row) + "\n")
    grading.load_sampler = lambda *_, **__: NoModel()  # type: ignore[assignment]
    start, begun = peak_mb(), time.perf_counter()
    facts = load_facts(str(file), topics=topics, synonyms=Synonyms.load())
    loaded, read = peak_mb(), time.perf_counter()
    base = BaseModel(ref=ModelRef(path=str(lab_folder() / "model")), name="none", sha256="none")
    grading.grade_dataset(
        base, facts, topics, Synonyms.load(), GradingOptions(keep_texts=keep_texts), work=folder / "work",
        out=folder / "graded", device="cpu",
    )  # fmt: skip
    kept = MasteryData(folder / "graded").manifest.get("continuations")
    return {
        "facts": count,
        "start_mb": start,
        "after_load_mb": loaded,
        "peak_mb": peak_mb(),
        "grown_mb": peak_mb() - start,
        "load_s": read - begun,
        "grade_s": time.perf_counter() - read,
        "bytes_per_continuation": kept["bytes"] / kept["count"] if kept else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, nargs="+", default=[10_000, 97_112])
    parser.add_argument("--keep-texts", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(arguments.one, Path(folder), keep_texts=arguments.keep_texts)))
        return
    rows = []
    for count in arguments.facts:
        command = [sys.executable, "-m", "tests.benchmarks.grading_memory", "--one", str(count)]
        command += ["--keep-texts"] if arguments.keep_texts else []
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'facts':>8} {'start MB':>9} {'loaded MB':>10} {'peak MB':>8} {'grown MB':>9} {'load s':>7} {'grade s':>8}")
    for row in rows:
        print(
            f"{row['facts']:>8,} {row['start_mb']:>9.0f} {row['after_load_mb']:>10.0f} {row['peak_mb']:>8.0f} "
            f"{row['grown_mb']:>9.0f} {row['load_s']:>7.1f} {row['grade_s']:>8.1f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
