"""A Ray cluster: the way to it, what it holds, what its nodes have installed, and silence while it works."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TextIO

from sftknow import __version__
from sftknow.dependencies import installed
from sftknow.errors import ClusterError, MissingExtraError, RecipeError, first_line
from sftknow.options import Count, NotNegative, Options, shown_as


@dataclass(frozen=True, kw_only=True)
class Cluster(Options):
    """Which Ray cluster, and how much of it."""

    address: str | None = field(default=None, metadata=shown_as("HOST:PORT"))
    """Ray: the cluster as ``host:port``, or ``local`` for one of this machine alone; None for the one that this machine
    belongs to."""
    replicas: Count | None = None
    """Ray: most workers at once; None for as many as fit."""
    cpus_per_replica: NotNegative = 1.0
    """Ray: CPU cores for each worker."""
    gpus_per_replica: NotNegative | None = None
    """Ray: GPUs for each worker; None for one where the cluster has GPUs; for tensor × data parallel with vLLM on CUDA;
    and for as many as ``accelerate`` has processes where it spreads the weights (FSDP, DeepSpeed) or ``model.device``
    is ``cuda``."""
    wait_seconds: NotNegative = 30.0
    """How long to wait for a node that can hold a worker; more where machines are started on demand."""

    def on_device(self, device: str, *, option: str, gpus: float | None) -> Cluster:
        """The same with the GPUs that each worker has.

        Args:
            device: of every worker: ``auto``, ``cpu``, ``cuda``.
            option: what the user calls the device.
            gpus: GPUs for each worker where none are named and the device is no CPU; None for one where the cluster
                has any.

        Raises:
            RecipeError: the device is a single one.
        """
        if ":" in device:
            raise RecipeError(f"Ray gives each worker its GPUs; take {option} cuda in place of {device}")
        if self.gpus_per_replica is not None:
            return self
        return replace(self, gpus_per_replica=0.0 if device == "cpu" else gpus)


_CONNECT_SECONDS = 5.0
_QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""Nothing leaves the machine unasked, and Ray's core does not write into the progress line."""

SAME_RESULTS = ("torch", "transformers", "tokenizers")
"""Packages whose other version may round otherwise."""


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
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
        raise ClusterError(f"no Ray cluster can be used at {where}: {first_line(error)}") from None
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


def alive(ray: Any) -> dict[str, str]:
    """{node id: a name for people} of the nodes that are up."""
    return {node["NodeID"]: f"{node['NodeManagerHostname']} ({_short(node)})" for node in ray.nodes() if node["Alive"]}


def _short(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"


def capacity(ray: Any, cluster: Cluster) -> tuple[float, int]:
    """GPUs for each worker, and how many workers the nodes hold together. Waits for a node that holds one."""
    cpus, asked_gpus = cluster.cpus_per_replica, cluster.gpus_per_replica
    deadline = time.monotonic() + cluster.wait_seconds
    asked = False
    while True:
        have = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = float(any(each.get("GPU", 0) >= 1 for each in have)) if asked_gpus is None else asked_gpus
        wanted = wanted_of(cpus, gpus)
        fit = sum(fitting(each, wanted) for each in have)
        if fit or not wanted:
            return gpus, fit
        if time.monotonic() >= deadline:
            largest = {name: max((each.get(name, 0) for each in have), default=0) for name in ("CPU", "GPU")}
            raise ClusterError(
                f"no node of the Ray cluster holds a worker of {cpus:g} CPU and {gpus:g} GPU (the most on one "
                f"node: {largest['CPU']:g} CPU, {largest['GPU']:g} GPU); ask for less, or start more nodes"
            )
        if not asked:
            asked = True
            from ray.autoscaler.sdk import request_resources

            request_resources(bundles=[wanted])  # a cluster that grows on demand starts a node; any other ignores it
        time.sleep(0.5)


def wanted_of(cpus: float, gpus: float) -> dict[str, float]:
    """What a worker takes of a node, by Ray's names."""
    return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0}


def fitting(resources: dict[str, float], wanted: dict[str, float]) -> int:
    """How many workers a node holds."""
    if not wanted:
        return int(resources.get("CPU", 1))
    return min(int(resources.get(name, 0) // amount) for name, amount in wanted.items())


@contextmanager
def quiet() -> Iterator[None]:
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


def installed_versions() -> dict[str, str]:
    found = {name: here for name in SAME_RESULTS if (here := installed(name)) is not None}
    return {"sftknow": __version__, **found}


def check_version(driver: dict[str, str]) -> dict[str, str]:
    here = installed_versions()
    if here["sftknow"] != driver["sftknow"]:
        raise ClusterError(
            f"sftknow {here['sftknow']} is installed there and {driver['sftknow']} here; install one version on all "
            "nodes"
        )
    return here


def node_name() -> str:
    return socket.gethostname()


def this_node() -> str:
    """What Ray calls the node that a worker runs on: unlike its host name, one of its kind."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def why(error: BaseException) -> str:
    """What a broken run says, from the words that Ray wraps around it."""
    text = str(error)
    if "No module named 'sftknow" in text:
        return "a node of the Ray cluster has no sftknow; install the same version on all nodes"
    return f"the Ray cluster broke down ({first_line(error)}); what is done is saved, start the same command again"
