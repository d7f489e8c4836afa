"""Run tasks on a Ray cluster: results as they come, lost ones again. What the tasks are is the caller's business.

Ray Data maps the tasks over a pool of actors. Each actor makes its worker (say, loads a model) at its first task and
keeps it. When a node or a process is lost, its task is done again elsewhere, or on the node once it is back. Nothing
goes through a shared file system: tasks are sent to the actors, and results come back to this process.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TextIO

from sftknow import __version__
from sftknow.errors import ClusterError, MissingExtraError, SftknowError

MAX_STARTS = 5
"""How often a task may be started: one that takes its process with it each time is given up."""

_CONNECT_SECONDS = 5.0
_SENT_ENVIRONMENT = ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HUB_DISABLE_XET", "HF_UPDATE_DOWNLOAD_COUNTS")
_QUIET_ENVIRONMENT = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
_QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""Nothing leaves the machine unasked, and Ray's core does not write into the progress line."""

_SAME_RESULTS = ("torch", "transformers", "tokenizers")
"""Packages whose other version may round otherwise."""

Worker = Callable[[Any], Any]
"""Does one task and returns its result, which must be picklable."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Which Ray cluster, and how much of it."""

    address: str | None = None
    """``host:port``; ``local`` starts a cluster of this machine alone; None or ``auto`` finds the one that this machine
    belongs to (RAY_ADDRESS, or a running ``ray start``)."""
    replicas: int | None = None
    """Most workers at once; None for as many as fit."""
    cpus: float = 1.0
    """CPU cores for each worker."""
    gpus: float | None = None
    """GPUs for each worker; None for one where the cluster has any."""
    wait: float = 30.0
    """Seconds to wait for a node that can hold a worker; more where machines are started on demand."""


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
        stack.enter_context(_quiet())
        ray = stack.enter_context(_connected(cluster.address))
        gpus, fit = _capacity(ray, cluster)
        replicas = min(fit, len(packed), cluster.replicas or fit)
        each = f"{cluster.cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
        say(f"Ray: {len(_alive(ray))} nodes, {replicas} workers of {each} each")
        finished: set[int] = set()
        nodes = _alive(ray)
        outcomes = _map(ray, make_worker, packed, cpus=cluster.cpus, gpus=gpus, replicas=replicas)
        for outcome in stack.enter_context(closing(outcomes)):
            now = _alive(ray)
            for name in sorted(nodes[lost] for lost in nodes.keys() - now.keys()):
                say(f"Ray: the node {name} was lost; what it was doing is done again")
            nodes = now
            if outcome.index not in finished:
                finished.add(outcome.index)
                yield outcome
        if len(finished) < len(packed):
            raise ClusterError(f"Ray gave {len(finished)} of {len(packed)} results; start the same command again")


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
            "versions": _versions(),
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
        raise ClusterError(_why(error)) from error


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
        for name, value in {**_QUIET_ENVIRONMENT, **environment}.items():
            os.environ.setdefault(name, value)  # before the Hub's client is imported, which reads it once
        self.make_worker, self.versions, self.counter = make_worker, versions, counter
        self.worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        index = int(batch["index"][0])
        try:
            outcome = {"value": self._work(index, batch["task"][0])}
        except SftknowError as error:
            outcome = {"failure": f"on node {_node()}: {error}"}
        except Exception as error:
            outcome = {
                "failure": f"on node {_node()}: {type(error).__name__}: {_first_line(error)}",
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
            here = _versions()
            if here["sftknow"] != self.versions["sftknow"]:
                raise ClusterError(
                    f"sftknow {here['sftknow']} is installed there and {self.versions['sftknow']} here; install one "
                    "version on all nodes"
                )
            for name in _SAME_RESULTS:
                if here.get(name) != self.versions.get(name):
                    print(f"{name} is {here.get(name)} here and {self.versions.get(name)} at the driver", flush=True)
            make_worker: Callable[[], Worker] = pickle.loads(self.make_worker)
            self.worker = make_worker()
        return self.worker(pickle.loads(zlib.decompress(task)))


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected; left connected where it was so before."""
    where = address or os.environ.get("RAY_ADDRESS") or "auto"
    _check_address(where)
    for name, value in _QUIET_RAY.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError:
        raise MissingExtraError("Ray Data", "ray") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"include_dashboard": False} if where == "local" else {}
    try:
        ray.init(address=where, logging_level=logging.ERROR, log_to_driver=False, **options)
    except (Exception, SystemExit) as error:
        ray.shutdown()
        if where == "auto" and isinstance(error, ConnectionError):
            raise ClusterError(
                "no Ray cluster is running on this machine; start one with `ray start --head`, or give --address "
                "HOST:PORT, or --address local for this machine alone"
            ) from None
        raise ClusterError(f"no Ray cluster can be used at {where}: {_first_line(error)}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Say at once what Ray would find out after two minutes."""
    if address in ("auto", "local"):
        return
    if "://" in address:
        raise ClusterError(
            f"{address} is an address for Ray's client; run sftknow on a machine of the cluster (or with `ray job "
            "submit`) and give --address HOST:PORT"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ClusterError(f"{address!r} is no address of a Ray cluster; give HOST:PORT, auto or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at {address} ({error}); the address is what `ray start --head` prints"
        ) from None


def _alive(ray: Any) -> dict[str, str]:
    """{node id: a name for people} of the nodes that are up."""
    return {node["NodeID"]: f"{node['NodeManagerHostname']} ({_short(node)})" for node in ray.nodes() if node["Alive"]}


def _short(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"


def _capacity(ray: Any, cluster: Cluster) -> tuple[float, int]:
    """GPUs for each worker, and how many workers the nodes hold together. Waits for a node that holds one."""
    deadline = time.monotonic() + cluster.wait
    asked = False
    while True:
        have = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = cluster.gpus if cluster.gpus is not None else float(any(each.get("GPU", 0) >= 1 for each in have))
        wanted = {name: amount for name, amount in (("CPU", cluster.cpus), ("GPU", gpus)) if amount > 0}
        if not wanted:
            return gpus, sum(int(each.get("CPU", 1)) for each in have)
        fit = sum(min(int(each.get(name, 0) // amount) for name, amount in wanted.items()) for each in have)
        if fit:
            return gpus, fit
        if time.monotonic() >= deadline:
            largest = {name: max((each.get(name, 0) for each in have), default=0) for name in ("CPU", "GPU")}
            raise ClusterError(
                f"no node of the Ray cluster holds a worker of {cluster.cpus:g} CPU and {gpus:g} GPU (the most on one "
                f"node: {largest['CPU']:g} CPU, {largest['GPU']:g} GPU); ask for less, or start more nodes"
            )
        if not asked:
            asked = True
            from ray.autoscaler.sdk import request_resources

            request_resources(bundles=[wanted])  # a cluster that grows on demand starts a node; any other ignores it
        time.sleep(0.5)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block, Ray's own threads print nothing: the death of a node comes with pages of raylet logs."""
    outer = sys.stderr
    sys.stderr = _WithoutRay(outer)
    try:
        yield
    finally:
        sys.stderr = outer


class _WithoutRay:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if threading.current_thread().name.startswith("ray_"):
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _versions() -> dict[str, str]:
    found = {"sftknow": __version__}
    for name in _SAME_RESULTS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _node() -> str:
    return socket.gethostname()


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__


def _why(error: BaseException) -> str:
    """What a broken run says, from the words that Ray wraps around it."""
    text = str(error)
    if "No module named 'sftknow" in text:
        return "a node of the Ray cluster has no sftknow; install the same version on all nodes (pip install sftknow)"
    return f"the Ray cluster broke down ({_first_line(error)}); what is done is saved, start the same command again"
