from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from sftknow.workers import in_order, share_jobs


class Adding:
    """A worker that adds up what it is given."""

    def __init__(self) -> None:
        self.total = 0
        self.thread = threading.get_ident()

    def __call__(self, job: int) -> int:
        assert threading.get_ident() == self.thread, "a worker belongs to one thread"
        self.total += job
        return 2


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_every_job_is_done_once(threads: int) -> None:
    done: list[int] = []
    workers = share_jobs(range(1000), Adding, threads, done.append)
    assert len(workers) == threads
    assert sum(worker.total for worker in workers) == sum(range(1000))
    assert done == [2] * 1000


def test_sixteen_threads_are_at_work_at_once() -> None:
    """None waits for another: only all together pass the barrier, again and again."""
    barrier = threading.Barrier(16, timeout=30)

    def meet(_: int) -> int:
        return 0 * barrier.wait()

    share_jobs(range(16 * 20), lambda: meet, 16, lambda _: None)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_the_earliest_error_is_raised_and_no_more_is_begun(threads: int) -> None:
    begun = []

    def work(job: int) -> int:
        begun.append(job)
        if job >= 5:
            raise ValueError(f"job {job}")
        return 1

    with pytest.raises(ValueError, match="job 5"):
        share_jobs(range(10_000), lambda: work, threads)
    assert max(begun) < 5 + threads


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_errors_of_the_jobs_themselves_and_of_a_start_are_passed_on(error: BaseException) -> None:
    def jobs() -> Iterator[int]:
        yield 1
        raise error

    def start() -> Callable[[int], int]:
        raise error

    with pytest.raises(type(error)):
        share_jobs(jobs(), Adding, 2)
    with pytest.raises(type(error)):
        share_jobs(range(3), start, 2)


def test_results_come_in_order_and_few_are_under_way() -> None:
    taken, first = [], threading.Event()

    def jobs() -> Iterator[int]:
        for job in range(100):
            taken.append(job)
            yield job

    def work(job: int) -> int:
        if job == 0:
            first.wait(timeout=30)
        return job * job

    results = in_order(jobs(), work, 3)
    first.set()
    assert next(results) == (0, 0)
    assert len(taken) <= 2 * 3 + 1
    assert list(results) == [(job, job * job) for job in range(1, 100)]
