"""Grading on many machines: each shard is a task of a Ray cluster, each worker one replica of the model.

A shard is sampled whole and by itself, so where it is done has no bearing on what comes out: the tallies are those of
one machine with the same kind of device. They come back to this process, which writes the shards; nodes share no files.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from sftknow.cluster import Cluster, run_tasks
from sftknow.errors import ClusterError
from sftknow.grading.sampling import Sampler, SampleRequest
from sftknow.grading.shards import Shard
from sftknow.records import SampleTally, SamplingPolicy

Task = tuple[tuple[SampleRequest, ...], SamplingPolicy, bool]
"""What a worker is sent: statements, policy, whether to keep the texts."""


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Works off shards on a Ray cluster; see `sftknow.grading.shards.Engine`."""

    load: Callable[[], Sampler]
    """Makes the sampler on a node. Picklable: a function or frozen dataclass of an installed module."""
    cluster: Cluster

    def tallies(
        self, shards: Sequence[Shard], policy: SamplingPolicy, *, keep_texts: bool, say: Callable[[str], None]
    ) -> Generator[tuple[Shard, list[SampleTally]], None, None]:
        """Each shard with its tallies, as they are finished.

        Raises:
            ClusterError: the cluster cannot be used, or a node cannot do the work; the line names the node.
        """
        tasks: Generator[Task, None, None] = ((shard.requests, policy, keep_texts) for shard in shards)
        for outcome in run_tasks(_MakeWorker(self.load), tasks, self.cluster, say=say):
            if outcome.failure is not None:
                if outcome.traceback:
                    say(outcome.traceback)
                raise ClusterError(outcome.failure)
            yield shards[outcome.index], outcome.value


@dataclass(frozen=True)
class _MakeWorker:
    load: Callable[[], Sampler]

    def __call__(self) -> Callable[[Any], list[SampleTally]]:
        sampler = self.load()

        def work(task: Task) -> list[SampleTally]:
            requests, policy, keep_texts = task
            return sampler.sample(requests, policy, keep_texts=keep_texts)

        return work
