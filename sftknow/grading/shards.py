"""Grading in shards: a stopped run goes on where it was, and gives what an undisturbed one gives.

The facts are cut into shards by their place in the sorted list of their ids, whatever is done already: so the batches
that a fact is sampled in are always the same. Each finished shard is one Parquet file, written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.artifacts.files import atomic_file, digest
from sftknow.artifacts.stages import RunDirectory
from sftknow.artifacts.tables import schema_of, to_record, to_table
from sftknow.errors import FactsError, RunError
from sftknow.grading.journal import Journal
from sftknow.grading.mastery import grade
from sftknow.grading.rules import journals
from sftknow.grading.sampling import Sampler, SampleRequest
from sftknow.progress import progress
from sftknow.records import Fact, GradedFact, SampleTally, SamplingPolicy

_FORMAT = 2
_KEY = b"sftknow.key"

SCHEMA = schema_of(SampleTally)
"""Columns of a shard: the fields of `SampleTally`; ``texts`` is null where continuations are not kept."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A fixed part of the work and the file that holds its result."""

    index: int
    statements: tuple[tuple[Fact, Sequence[str]], ...]
    """The shard's facts with their statements."""
    templates: tuple[int, ...] | None
    """Indices of the statements to sample; None for all."""
    first: int = 0
    """Continuations of each statement that are left out, as others drew them."""
    key: str
    """SHA-256 (hex) of everything that the tallies depend on."""
    path: Path

    @property
    def facts(self) -> tuple[Fact, ...]:
        """In the order of their ids."""
        return tuple(fact for fact, _ in self.statements)

    @property
    def requests(self) -> tuple[SampleRequest, ...]:
        """Made anew at every use: those of all shards at once would be two million for the paper's facts."""
        return tuple(r for fact, texts in self.statements for r in _requests(fact, texts, self.templates, self.first))

    @property
    def size(self) -> int:
        """Number of requests."""
        return sum(len(_chosen(texts, self.templates)) for _, texts in self.statements)


def plan_shards(
    statements: Sequence[tuple[Fact, Sequence[str]]],
    policy: SamplingPolicy,
    folder: Path,
    *,
    shard_size: int = 256,
    keep_texts: bool = False,
    templates: Sequence[int] | None = None,
    identity: str = "",
    first: int = 0,
) -> list[Shard]:
    """Cut the work into shards. See `grade_facts` for the arguments; ``first`` is that of `SampleRequest`.

    Raises:
        FactsError: two facts of one id, or a fact without any statement to sample.
    """
    ordered = sorted(statements, key=lambda pair: pair[0].id)
    for (one, _), (other, _) in pairwise(ordered):
        if one.id == other.id:
            raise FactsError(f"two facts have the id {one.id}; ids must be unique")
    shards = []
    wanted = None if templates is None else tuple(sorted(set(templates)))
    head = digest({"format": _FORMAT, "identity": identity, "policy": policy, "keep_texts": keep_texts})
    for index, start in enumerate(range(0, len(ordered), shard_size)):
        part = tuple(ordered[start : start + shard_size])
        key = _key_of(head, (request for fact, texts in part for request in _requests(fact, texts, wanted, first)))
        path = folder / "shards" / f"{index:05d}-{key[:16]}.parquet"
        shards.append(Shard(index=index, statements=part, templates=wanted, first=first, key=key, path=path))
    return shards


def grade_facts(
    requests_by_fact: Sequence[tuple[Fact, Sequence[str]]],
    sampler: Sampler | Engine,
    policy: SamplingPolicy,
    folder: str | Path,
    *,
    shard_size: int = 256,
    keep_texts: bool = False,
    templates: Sequence[int] | None = None,
    identity: str = "",
) -> list[GradedFact]:
    """Sample every statement of every fact and grade the facts.

    Args:
        requests_by_fact: each fact with its statements, in the order of its topic's templates, subject filled in.
        sampler: see `sftknow.grading.sampling`; or an `Engine`.
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
    folder = Path(folder)
    shards = plan_shards(
        requests_by_fact,
        policy,
        folder,
        shard_size=shard_size,
        keep_texts=keep_texts,
        templates=templates,
        identity=identity,
    )
    sample_shards(shards, sampler, policy, keep_texts=keep_texts)
    graded = {row.fact.id: row for row in graded_facts(shards, policy, keep_texts=keep_texts)}
    return [graded[fact.id] for fact, _ in requests_by_fact]


def unfinished(shards: Sequence[Shard], policy: SamplingPolicy, *, keep_texts: bool = False) -> list[Shard]:
    """The shards that are missing, damaged or of other work."""
    return [shard for shard in shards if read_shard(shard, policy, keep_texts=keep_texts) is None]


@runtime_checkable
class Engine(Protocol):
    """Whatever can work off shards in its own order and places, such as `sftknow.grading.ray_engine.RayEngine`."""

    def tallies(
        self, shards: Sequence[Shard], policy: SamplingPolicy, *, keep_texts: bool, say: Callable[[str], None]
    ) -> Generator[tuple[Shard, list[SampleTally]], None, None]:
        """Each shard with what `Sampler.sample` gives for its requests, as they are finished."""
        ...


def sample_shards(
    shards: Sequence[Shard],
    sampler: Sampler | Engine,
    policy: SamplingPolicy,
    *,
    keep_texts: bool = False,
    left: Sequence[Shard] | None = None,
    title: str = "grading",
) -> None:
    """Do the shards that are not done yet; each is on disk as soon as it is finished.

    Args:
        shards: all of them, of one folder.
        sampler: samples in this process, or an engine that does the shards elsewhere.
        policy: how to sample.
        keep_texts: keep the continuations in the shards.
        left: what `unfinished` found, where it was already asked.
        title: of the progress bar.

    Raises:
        RunError: another process works in the same folder.
    """
    left = unfinished(shards, policy, keep_texts=keep_texts) if left is None else left
    total = sum(shard.size for shard in shards)
    done = total - sum(shard.size for shard in left)
    with ExitStack() as stack:
        for folder in {shard.path.parent.parent for shard in shards}:
            stack.enter_context(RunDirectory(folder))
        bar = stack.enter_context(progress(total, title, unit="statements", done=done, steady=True))

        def say(line: str) -> None:
            bar.write(line, file=sys.stderr)

        def advance(finished: float) -> None:
            bar.update(finished)

        for shard in left:
            if shard.path.is_file():
                say(f"{shard.path.name} is damaged; its {len(shard.statements)} facts are done again")
        if isinstance(sampler, Engine):
            for shard, tallies in stack.enter_context(
                closing(sampler.tallies(left, policy, keep_texts=keep_texts, say=say))
            ):
                write_shard(shard, tallies)
                bar.update(shard.size)
        else:
            for shard in left:
                _sample_shard(shard, sampler, policy, keep_texts, advance)
    for folder in {shard.path.parent for shard in shards}:
        for leftover in folder.glob(".*.partial"):
            leftover.unlink(missing_ok=True)


def _sample_shard(
    shard: Shard, sampler: Sampler, policy: SamplingPolicy, keep_texts: bool, advance: Callable[[float], None]
) -> None:
    """Sample a shard and write it; what an earlier start left in its journal is not asked again."""
    requests, more, journal = shard.requests, {}, None
    takes, keeps = journals(sampler)
    if takes:
        path = shard.path.with_suffix(".journal")
        journal = Journal(path, shard.key, requests, policy, keep_texts=keep_texts or keeps)
        more = {"journal": journal}
    write_shard(shard, sampler.sample(requests, policy, keep_texts=keep_texts, on_done=advance, **more))
    if journal is not None:
        journal.remove()


def graded_facts(shards: Sequence[Shard], policy: SamplingPolicy, *, keep_texts: bool = False) -> Iterator[GradedFact]:
    """The facts of finished shards with their mastery, in the order of their ids; one shard is in memory at a time.

    Raises:
        RunError: a shard is not finished.
    """
    for shard, tallies in finished(shards, policy, keep_texts):
        by_fact: dict[str, list[SampleTally]] = {}
        for tally in tallies:
            by_fact.setdefault(tally.fact_id, []).append(tally)
        for fact in shard.facts:
            yield GradedFact(fact=fact, mastery=grade(fact.id, by_fact[fact.id]))


def kept_tallies(shards: Sequence[Shard], policy: SamplingPolicy) -> Iterator[SampleTally]:
    """The tallies of finished shards with their continuations, in the order of fact id and template.

    Raises:
        RunError: a shard is not finished, or its continuations were not kept.
    """
    for _, tallies in finished(shards, policy, keep_texts=True):
        yield from tallies


def finished(
    shards: Sequence[Shard], policy: SamplingPolicy, keep_texts: bool
) -> Iterator[tuple[Shard, list[SampleTally]]]:
    """Each shard with its tallies. Raises RunError where one is not finished."""
    for shard in shards:
        tallies = read_shard(shard, policy, keep_texts=keep_texts)
        if tallies is None:
            raise RunError(f"{shard.path} is missing or damaged; start the same command again")
        yield shard, tallies


def write_shard(shard: Shard, tallies: Sequence[SampleTally]) -> None:
    """Write a finished shard, whole or not at all, with checksums on its pages."""
    table = to_table(tallies, SCHEMA.with_metadata({_KEY: shard.key.encode()}))
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
    tallies = [to_record(SampleTally, row) for row in table.to_pylist()]
    expected = [(request.fact_id, request.template) for request in shard.requests]
    whole = [(tally.fact_id, tally.template) for tally in tallies] == expected and all(
        tally.tries == policy.samples
        and 0 <= tally.hits <= tally.tries
        and (len(tally.texts) == tally.tries if tally.texts is not None else not keep_texts)
        for tally in tallies
    )
    return tallies if whole else None


def _key_of(head: str, requests: Iterable[SampleRequest]) -> str:
    """SHA-256 (hex) of a shard's work. Two million requests are hashed at every start, so without detours."""
    work = hashlib.sha256(head.encode())
    for request in requests:
        first = [request.first] if request.first else []
        work.update(json.dumps([request.fact_id, request.template, request.prompt, request.answers, *first]).encode())
    return work.hexdigest()


def _chosen(statements: Sequence[str], templates: Sequence[int] | None) -> list[int]:
    """Indices of the statements to sample."""
    wanted = range(len(statements)) if templates is None else templates
    return [i for i in wanted if 0 <= i < len(statements)]


def _requests(
    fact: Fact, statements: Sequence[str], templates: Sequence[int] | None, first: int
) -> list[SampleRequest]:
    chosen = _chosen(statements, templates)
    if not chosen:
        raise FactsError(f"fact {fact.id} has no statement to sample; give its topic {fact.topic} a template")
    return [
        SampleRequest(fact_id=fact.id, template=i, prompt=statements[i], answers=fact.answers, first=first)
        for i in chosen
    ]
