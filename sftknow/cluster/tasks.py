"""Run tasks on a Ray cluster: results as they come, lost ones again. What the tasks are is the caller's business.

Ray Data maps the tasks over a pool of actors. Each actor makes its worker (say, loads a model) at its first task and
keeps it. When a node or a process is lost, its task is done again elsewhere, or on the node once it is back. Nothing
here goes through a shared file system: tasks are sent to the actors, and results come back to this process. Work that
needs one asks for it first (`on_every_node`).
"""

from __future__ import annotations

import os
import pickle
import traceback
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from sftknow.cluster.connection import (
    SAME_RESULTS,
    Cluster,
    alive,
    capacity,
    check_version,
    connected,
    fitting,
    installed_versions,
    node_name,
    quiet,
    wanted_of,
    why,
)
from sftknow.dependencies import QUIET
from sftknow.errors import ClusterError, SftknowError, first_line

MAX_STARTS = 5
"""How often a task may be started: one that takes its process with it each time is given up."""

_NODE_SECONDS = 300.0
"""How long a node may take for a look; the first import of torch from a cold network disk is slow."""
_SENT_ENVIRONMENT = ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HUB_DISABLE_XET", "HF_UPDATE_DOWNLOAD_COUNTS")

Worker = Callable[[Any], Any]
"""Does one task and returns its result, which must be picklable."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one task."""

    index: int
    """Place of the task among those given."""
    value: Any = None
    """What the worker returned; None where it failed."""
    failure: str | None = None
    """One line that names the node, the thing that is wrong and the way out; None where all went well."""
    traceback: str | None = None
    """Of a failure that is a bug rather than a mistake of the user's."""


def run_tasks(
    make_worker: Callable[[], Worker],
    tasks: Iterable[Any],
    cluster: Cluster,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Outcome]:
    """Do every task once, on whichever node is free.

    Args:
        make_worker: picklable (a function or frozen dataclass of an installed module); called once in each actor.
        tasks: picklable.
        cluster: where, and with which resources.
        say: takes lines worth knowing: how many workers, which nodes were lost.

    Yields:
        One outcome a task, in the order in which they finish. Closing the iterator ends the workers.

    Raises:
        MissingExtraError: Ray is not installed.
        ClusterError: the cluster cannot be reached, holds no such worker, or broke down.
    """
    packed = [zlib.compress(pickle.dumps(task), 1) for task in tasks]
    if not packed:
        return
    with ExitStack() as stack:
        stack.enter_context(quiet())
        ray = stack.enter_context(connected(cluster.address))
        gpus, fit = capacity(ray, cluster)
        replicas = min(fit, len(packed), cluster.replicas or fit)
        each = f"{cluster.cpus_per_replica:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
        say(f"Ray: {len(alive(ray))} nodes, {replicas} workers of {each} each")
        finished: set[int] = set()
        nodes = alive(ray)
        outcomes = _map(ray, make_worker, packed, cpus=cluster.cpus_per_replica, gpus=gpus, replicas=replicas)
        for outcome in stack.enter_context(closing(outcomes)):
            now = alive(ray)
            for name in sorted(nodes[lost] for lost in nodes.keys() - now.keys()):
                say(f"Ray: the node {name} was lost; what it was doing is done again")
            nodes = now
            if outcome.index not in finished:
                finished.add(outcome.index)
                yield outcome
        if len(finished) < len(packed):
            raise ClusterError(f"Ray gave {len(finished)} of {len(packed)} results; start the same command again")


def on_every_node(work: Callable[[], None], cluster: Cluster) -> dict[str, str]:
    """Do something small once on every node that can hold a worker, such as looking whether it has what is needed.

    Args:
        work: picklable, as for `run_tasks`; raises a `SftknowError` where something is wrong there.
        cluster: where, and with which resources.

    Returns:
        {node: one line that says what is wrong there}, of the nodes where something is.

    Raises:
        MissingExtraError: Ray is not installed.
        ClusterError: the cluster cannot be reached, holds no worker, or broke down.
    """
    with quiet(), connected(cluster.address) as ray:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        gpus, _ = capacity(ray, cluster)
        wanted = wanted_of(cluster.cpus_per_replica, gpus)
        names = alive(ray)
        nodes = [node for node in ray.nodes() if node["Alive"] and fitting(node["Resources"], wanted)]
        attempt = ray.remote(_attempt)
        asked = {
            names[node["NodeID"]]: attempt.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(pickle.dumps(work), installed_versions())
            for node in nodes
        }
        try:
            said = {name: ray.get(answer, timeout=_NODE_SECONDS) for name, answer in asked.items()}
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError, RuntimeError, ConnectionError) as error:
            raise ClusterError(why(error)) from error
    return {name: line for name, line in said.items() if line is not None}


def _attempt(work: bytes, versions: dict[str, str]) -> str | None:
    try:
        check_version(versions)
        pickle.loads(work)()
    except SftknowError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _map(
    ray: Any, make_worker: Callable[[], Worker], packed: list[bytes], *, cpus: float, gpus: float, replicas: int
) -> Generator[Outcome, None, None]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    starts = ray.remote(_Starts).options(
        num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)
    )
    counter = starts.remote()
    rows = [{"index": i, "task": task} for i, task in enumerate(packed)]
    data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Replica,
        fn_constructor_kwargs={
            "make_worker": pickle.dumps(make_worker),
            "environment": {name: os.environ[name] for name in _SENT_ENVIRONMENT if name in os.environ},
            "versions": installed_versions(),
            "counter": counter,
        },
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, initial_size=replicas, max_size=replicas, max_tasks_in_flight_per_actor=1
        ),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    try:
        for batch in data.iter_batches(batch_size=None, prefetch_batches=0):
            for index, result in zip(batch["index"], batch["result"], strict=True):
                yield Outcome(index=int(index), **pickle.loads(zlib.decompress(result)))
    except (ray.exceptions.RayError, RuntimeError, ConnectionError) as error:
        raise ClusterError(why(error)) from error


class _Starts:
    """Counts how often each task was begun; lives beside the driver, so that it outlasts the workers."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def add(self, index: int) -> int:
        self.counts[index] = self.counts.get(index, 0) + 1
        return self.counts[index]


class _Replica:
    """One actor of the pool. What goes wrong comes back as data: an actor that raises would be started again."""

    def __init__(self, make_worker: bytes, environment: dict[str, str], versions: dict[str, str], counter: Any) -> None:
        for name, value in {**QUIET, **environment}.items():
            os.environ.setdefault(name, value)  # before the Hub's client is imported, which reads it once
        self.make_worker, self.versions, self.counter = make_worker, versions, counter
        self.worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        index = int(batch["index"][0])
        try:
            outcome = {"value": self._work(index, batch["task"][0])}
        except SftknowError as error:
            outcome = {"failure": f"on node {node_name()}: {error}"}
        except Exception as error:
            outcome = {
                "failure": f"on node {node_name()}: {type(error).__name__}: {first_line(error)}",
                "traceback": traceback.format_exc(),
            }
        return {"index": [index], "result": [zlib.compress(pickle.dumps(outcome), 1)]}

    def _work(self, index: int, task: bytes) -> Any:
        import ray

        if ray.get(self.counter.add.remote(index)) > MAX_STARTS:
            raise ClusterError(
                f"task {index} ended its process {MAX_STARTS} times (out of memory, or a crash); see Ray's logs, and "
                "give each worker more with fewer workers or smaller work"
            )
        if self.worker is None:
            here = check_version(self.versions)
            for name in SAME_RESULTS:
                if here.get(name) != self.versions.get(name):
                    print(f"{name} is {here.get(name)} here and {self.versions.get(name)} at the driver", flush=True)
            make_worker: Callable[[], Worker] = pickle.loads(self.make_worker)
            self.worker = make_worker()
        return self.worker(pickle.loads(zlib.decompress(task)))
