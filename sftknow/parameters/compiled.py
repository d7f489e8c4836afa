"""The compiler of the kernels: numba, without fast-math, with IEEE division, the interpreter lock released.

The machine code is kept on disk (next to the module, else in the user's cache folder, else nowhere), so that it is
compiled once for a machine and not once for a start. Importing this module imports numba: import it late.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from sftknow.dependencies import needs
from sftknow.processes import is_main

with needs("numba"):
    from numba.core.event import Listener, install_listener

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile at the first call for each combination of argument types; the result releases the interpreter lock."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": False, "boundscheck": False}
    try:
        made = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that a cache could be written to
        return cast(F, numba.njit(**options)(function))
    # Numba would keep machine code as long as the function's own file is unchanged, whatever it calls elsewhere.
    kept: Any = getattr(getattr(made, "_cache", None), "_cache_file", None)
    if not hasattr(kept, "_source_stamp"):  # another version of numba: better compiled at every start than stale
        return cast(F, numba.njit(**options)(function))
    kept._source_stamp = _sources()
    return cast(F, made)


def inlined(function: F) -> F:
    """A small helper that is compiled into the kernels that call it."""
    return cast(F, numba.njit(inline="always", error_model="numpy", fastmath=False)(function))


@contextmanager
def compiling_announced() -> Iterator[None]:
    """Within the block a line on standard error says when kernels have to be compiled, which takes seconds."""
    with install_listener("numba:compile", _Announcer()):
        yield


class _Announcer(Listener):  # type: ignore[misc]
    """Hears when numba begins to compile what its cache does not have."""

    def __init__(self) -> None:
        self._said = False

    def on_start(self, event: Any) -> None:
        if not self._said and is_main():
            print("compiling the kernels for this machine (once, some seconds)", file=sys.stderr, flush=True)
        self._said = True

    def on_end(self, event: Any) -> None:
        pass


@cache
def _sources() -> str:
    """What all kernels are made from."""
    folder = Path(__file__).parent
    files = [
        folder / "compiled.py",
        folder / "vectors.py",
        folder / "blending.py",
        *sorted(folder.glob("*_kernels.py")),
    ]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
