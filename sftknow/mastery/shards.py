"""Grading in shards: a stopped run goes on where it was, and gives what an undisturbed one gives.

The facts are cut into shards by their place in the sorted list of their ids, whatever is done already: so the batches
that a fact is sampled in are always the same. Each finished shard is one Parquet file, written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.errors import FactsError
from sftknow.mastery.grading import grade
from sftknow.mastery.sampling import Sampler, SampleRequest
from sftknow.progress import progress
from sftknow.records import Fact, GradedFact, SampleTally, SamplingPolicy
from sftknow.storage.artifacts import atomic_file, digest

_FORMAT = 1
_KEY = b"sftknow.key"

SCHEMA = pa.schema(
    [
        ("fact_id", pa.string()),
        ("template", pa.int32()),
        ("tries", pa.int32()),
        ("hits", pa.int32()),
        ("texts", pa.list_(pa.string())),
    ]
)
"""Columns of a shard: the fields of `SampleTally`; ``texts`` is null where continuations are not kept."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A fixed part of the work and the file that holds its result."""

    index: int
    facts: tuple[Fact, ...]
    requests: tuple[SampleRequest, ...]
    key: str
    """SHA-256 (hex) of everything that the tallies depend on."""
    path: Path


def plan_shards(
    statements: Sequence[tuple[Fact, Sequence[str]]],
    policy: SamplingPolicy,
    folder: Path,
    *,
    shard_size: int = 256,
    keep_texts: bool = False,
    templates: Sequence[int] | None = None,
    identity: str = "",
) -> list[Shard]:
    """Cut the work into shards. See `grade_facts` for the arguments.

    Raises:
        FactsError: two facts of one id, or a fact without any statement to sample.
    """
    ordered = sorted(statements, key=lambda pair: pair[0].id)
    for (one, _), (other, _) in pairwise(ordered):
        if one.id == other.id:
            raise FactsError(f"two facts have the id {one.id}; ids must be unique")
    shards = []
    for index, start in enumerate(range(0, len(ordered), shard_size)):
        part = ordered[start : start + shard_size]
        requests = tuple(request for fact, texts in part for request in _requests(fact, texts, templates))
        key = digest(
            {"format": _FORMAT, "identity": identity, "policy": policy, "keep_texts": keep_texts, "requests": requests}
        )
        path = folder / "shards" / f"{index:05d}-{key[:16]}.parquet"
        shards.append(Shard(index=index, facts=tuple(fact for fact, _ in part), requests=requests, key=key, path=path))
    return shards


def grade_facts(
    requests_by_fact: Sequence[tuple[Fact, Sequence[str]]],
    sampler: Sampler,
    policy: SamplingPolicy,
    folder: Path,
    *,
    shard_size: int = 256,
    keep_texts: bool = False,
    templates: Sequence[int] | None = None,
    identity: str = "",
) -> list[GradedFact]:
    """Sample every statement of every fact and grade the facts.

    Args:
        requests_by_fact: each fact with its statements, in the order of its topic's templates, subject filled in.
        sampler: see `sftknow.mastery.sampling`.
        policy: how to sample.
        folder: finished shards go to ``folder/shards``; those of the same work are taken from there.
        shard_size: facts in a shard.
        keep_texts: keep the continuations in the shards.
        templates: indices of the statements to sample; None for all. One that a fact does not have is passed over.
        identity: what samples, such as the model and its revision; shards of another identity are not taken over.

    Returns:
        The facts in the order given, each with its mastery.

    Raises:
        FactsError: two facts of one id, or a fact without any statement to sample.
    """
    shards = plan_shards(
        requests_by_fact,
        policy,
        folder,
        shard_size=shard_size,
        keep_texts=keep_texts,
        templates=templates,
        identity=identity,
    )
    graded: dict[str, GradedFact] = {}
    left: list[Shard] = []
    for shard in shards:
        tallies = read_shard(shard, policy, keep_texts=keep_texts)
        if tallies is None:
            left.append(shard)
        else:
            graded.update(_grade_shard(shard, tallies))
    total = sum(len(shard.requests) for shard in shards)
    done = total - sum(len(shard.requests) for shard in left)
    with progress(total, "grading", unit="statements", done=done) as bar:

        def advance(finished: int) -> None:
            bar.update(finished)

        for shard in left:
            tallies = sampler.sample(shard.requests, policy, keep_texts=keep_texts, on_done=advance)
            write_shard(shard, tallies)
            graded.update(_grade_shard(shard, tallies))
    for leftover in (folder / "shards").glob(".*.partial"):
        leftover.unlink(missing_ok=True)
    return [graded[fact.id] for fact, _ in requests_by_fact]


def write_shard(shard: Shard, tallies: Sequence[SampleTally]) -> None:
    """Write a finished shard, whole or not at all, with checksums on its pages."""
    rows = [
        {
            "fact_id": tally.fact_id,
            "template": tally.template,
            "tries": tally.tries,
            "hits": tally.hits,
            "texts": None if tally.texts is None else list(tally.texts),
        }
        for tally in tallies
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({_KEY: shard.key.encode()}))
    with atomic_file(shard.path) as partial:
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)


def read_shard(shard: Shard, policy: SamplingPolicy, *, keep_texts: bool) -> list[SampleTally] | None:
    """The tallies of a finished shard; None where it is missing, damaged or of other work, and is to be done again."""
    if not shard.path.is_file():
        return None
    try:
        # Not `read_table`, which would take the folder's name for a partition.
        table = pq.ParquetFile(shard.path, page_checksum_verification=True).read()
    except (pa.ArrowException, OSError):
        return None
    if table.schema.names != SCHEMA.names or (table.schema.metadata or {}).get(_KEY) != shard.key.encode():
        return None
    tallies = [_tally(row) for row in table.to_pylist()]
    expected = [(request.fact_id, request.template) for request in shard.requests]
    whole = [(tally.fact_id, tally.template) for tally in tallies] == expected and all(
        tally.tries == policy.samples
        and 0 <= tally.hits <= tally.tries
        and (len(tally.texts) == tally.tries if tally.texts is not None else not keep_texts)
        for tally in tallies
    )
    return tallies if whole else None


def _tally(row: dict[str, Any]) -> SampleTally:
    return SampleTally(
        fact_id=row["fact_id"],
        template=row["template"],
        tries=row["tries"],
        hits=row["hits"],
        texts=None if row["texts"] is None else tuple(row["texts"]),
    )


def _requests(fact: Fact, statements: Sequence[str], templates: Sequence[int] | None) -> list[SampleRequest]:
    wanted = range(len(statements)) if templates is None else sorted(set(templates))
    chosen = [i for i in wanted if 0 <= i < len(statements)]
    if not chosen:
        raise FactsError(f"fact {fact.id} has no statement to sample; give its topic {fact.topic} a template")
    return [SampleRequest(fact_id=fact.id, template=i, prompt=statements[i], answers=fact.answers) for i in chosen]


def _grade_shard(shard: Shard, tallies: Sequence[SampleTally]) -> dict[str, GradedFact]:
    by_fact: dict[str, list[SampleTally]] = {fact.id: [] for fact in shard.facts}
    for tally in tallies:
        by_fact[tally.fact_id].append(tally)
    return {fact.id: GradedFact(fact=fact, mastery=grade(fact.id, by_fact[fact.id])) for fact in shard.facts}
