"""Threads that share work: the one engine of every pass over a checkpoint.

The work itself releases the interpreter lock (compiled kernels, reads, writes, hashes, compression), so that as many
threads as processors keep all of them busy. What the threads share is one iterator of jobs, behind one lock.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
Worker = TypeVar("Worker", bound=Callable[..., int])


def share_jobs(
    jobs: Iterable[Job], start: Callable[[], Worker], threads: int, advance: Callable[[int], object] | None = None
) -> list[Worker]:
    """Hand jobs, in their order, to whichever thread is free.

    Args:
        jobs: iterated as threads ask for more, so that they may be millions.
        start: called once in each thread; makes its worker, which owns its buffers and counters. A worker is called
            with a job and returns how far that brings the progress.
        threads: at least 1.
        advance: told of that progress, by one thread at a time.

    Returns:
        The workers, for what they have counted.

    Raises:
        BaseException: what a worker raised; of several the one with the earliest job. No further job is begun then,
            nor after an interruption, and no thread is left running.
    """
    queue = enumerate(jobs)
    lock, stop = threading.Lock(), threading.Event()
    failures: list[tuple[int, BaseException]] = []

    def run() -> Worker | None:
        number = -1
        try:
            worker = start()
            while not stop.is_set():
                with lock:
                    number, job = next(queue, (-1, None))
                if job is None:
                    break
                done = worker(job)
                if advance:
                    with lock:
                        advance(done)
            return worker
        except BaseException as error:
            failures.append((number, error))
            stop.set()
            raise

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(run) for _ in range(threads)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # Ctrl-C must not wait for all jobs
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]
    return [worker for future in futures if (worker := future.result()) is not None]


def in_order(jobs: Iterable[Job], work: Callable[[Job], Result], threads: int) -> Iterator[tuple[Job, Result]]:
    """Every job with its result, in the order of the jobs, with no more under way than keeps every thread busy."""
    waiting: deque[tuple[Job, Future[Result]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for job in jobs:
            waiting.append((job, pool.submit(work, job)))
            if len(waiting) > 2 * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
