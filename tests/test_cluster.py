"""Tasks on a real Ray cluster, and what is said where there is none."""

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from sftknow.cluster import MAX_STARTS, Cluster, run_tasks
from sftknow.errors import ClusterError, MissingExtraError, ModelError
from tests.ray_cluster import ray_cluster


@dataclass(frozen=True)
class MakeSquares:
    """Workers that square numbers; some numbers are trouble."""

    log: Path | None = None

    def __call__(self):
        made_by = os.getpid()

        def work(number):
            if self.log is not None:
                with self.log.open("a") as file:
                    file.write(f"{number}\n")
            if number == -1:
                raise ModelError("there is no model at /x; give another")
            if number == -2:
                raise ZeroDivisionError("a bug")
            if number == -3:
                os._exit(1)
            return number**2, made_by == os.getpid(), os.environ.get("OMP_NUM_THREADS")

        return work


def nothing():
    raise AssertionError("no worker is made here")


@pytest.fixture(scope="module")
def address():
    with ray_cluster(2) as cluster:
        yield cluster.address


@pytest.mark.ray
def test_every_task_comes_back_once_from_workers_that_are_made_once(address):
    said = []
    outcomes = list(run_tasks(MakeSquares(), range(7), Cluster(address=address), say=said.append))
    assert sorted(outcome.index for outcome in outcomes) == list(range(7))
    assert all(outcome.value[:2] == (outcome.index**2, True) for outcome in outcomes)
    assert all(outcome.failure is None for outcome in outcomes)
    assert said == ["Ray: 1 nodes, 2 workers of 1 CPU each"]


@pytest.mark.ray
def test_a_failure_is_a_line_that_names_the_node_and_stops_no_other_task(address):
    outcomes = {o.index: o for o in run_tasks(MakeSquares(), [3, -1, -2], Cluster(address=address, replicas=1))}
    host = socket.gethostname()
    assert outcomes[0].value[0] == 9
    assert outcomes[1].failure == f"on node {host}: there is no model at /x; give another"
    assert outcomes[1].traceback is None
    assert outcomes[2].failure == f"on node {host}: ZeroDivisionError: a bug"
    assert "work" in outcomes[2].traceback


@pytest.mark.ray
def test_a_task_that_ends_its_process_each_time_is_given_up(address, tmp_path):
    log = tmp_path / "log"
    outcomes = {o.index: o for o in run_tasks(MakeSquares(log), [2, -3, 4], Cluster(address=address, replicas=1))}
    assert (outcomes[0].value[0], outcomes[2].value[0]) == (4, 16)
    assert f"ended its process {MAX_STARTS} times" in outcomes[1].failure
    assert log.read_text().split().count("-3") == MAX_STARTS


@pytest.mark.ray
@pytest.mark.parametrize(
    ("ask", "words"), [({"gpus_per_replica": 1.0}, "1 CPU and 1 GPU"), ({"cpus_per_replica": 64.0}, "64 CPU and 0 GPU")]
)
def test_a_worker_that_fits_nowhere_is_refused(address, ask, words):
    cluster = Cluster(address=address, wait_seconds=0.0, **ask)
    with pytest.raises(ClusterError, match=f"no node of the Ray cluster holds a worker of {words}.*most on one"):
        list(run_tasks(nothing, [1], cluster))


@pytest.mark.ray
def test_without_any_cluster_the_way_to_one_is_named(monkeypatch):
    import ray

    def init(**options):
        assert options["address"] == "auto"
        raise ConnectionError("Could not find any running Ray instance")

    ray.shutdown()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ClusterError, match="no Ray cluster is running on this machine; start one with `ray start"):
        list(run_tasks(nothing, [1], Cluster()))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nonsense", "no address of a Ray cluster; give HOST:PORT"),
        ("host:port", "no address of a Ray cluster"),
        ("host:99999", "no address of a Ray cluster"),
        ("ray://127.0.0.1:10001", "run sftknow on a machine of the cluster"),
    ],
)
def test_an_address_that_is_none_is_refused(address, words):
    with pytest.raises(ClusterError, match=words):
        list(run_tasks(nothing, [1], Cluster(address=address)))


def test_an_address_where_nothing_listens_is_refused_before_ray_waits_two_minutes_for_it():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ClusterError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
        list(run_tasks(nothing, [1], Cluster(address=f"127.0.0.1:{port}")))


def test_without_ray_the_install_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sftknow\[ray\]'"):
        list(run_tasks(nothing, [1], Cluster(address="local")))


def test_no_tasks_need_no_cluster():
    assert list(run_tasks(nothing, [], Cluster(address="nonsense"))) == []
