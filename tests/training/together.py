"""Several gloo processes that do one thing together, forked from the test so that nothing is imported anew."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch


def together(work: Callable[[int], None], folder: Path, *, count: int = 2, seconds: float = 120) -> list[int]:
    """Call ``work(rank)`` in that many processes; return their exit codes, negative where a signal ended them.

    What a process says, and the traceback of what it raised, is in ``folder/rank<i>.txt``. Where one ends badly the
    others are ended as well, as launchers do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=_rank, args=(work, rank, count, port, folder)) for rank in range(count)]
    for process in started:
        process.start()
    left = list(started)
    while left and seconds > 0:
        left[0].join(0.05)
        seconds -= 0.05
        left = [process for process in left if process.is_alive()]
        if any(process.exitcode for process in started):
            break
    for process in left:
        process.join(5)
        process.kill()
        process.join()
    return [process.exitcode or 0 for process in started]


def _rank(work: Callable[[int], None], rank: int, count: int, port: int, folder: Path) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"})
    torch.set_num_threads(1)  # the parent's threads do not exist in a fork
    gc.freeze()  # collecting the parent's objects would copy all its memory
    with (folder / f"rank{rank}.txt").open("w", buffering=1) as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        sys.stdout = sys.stderr = said
        try:
            work(rank)
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        except BaseException:
            traceback.print_exc(file=said)
            said.flush()
            os._exit(1)
        said.flush()
    os._exit(0)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """The number of threads of a forked process, so that one process and several sum in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
