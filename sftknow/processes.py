"""Which of the processes that one launcher started is this? Standard library only.

`accelerate launch` and `torchrun` start the same command several times and tell each copy its place in the
environment. One of them, the main process, speaks, writes and saves; the others work and are silent.
What cannot be shown where it speaks is spelt otherwise.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import threading
import time
import unicodedata
from pathlib import Path

from sftknow.artifacts.lock import wait_for_release

# What `accelerate launch` tells its processes beside their places.
_FSDP, _DEEPSPEED, _USE_CPU = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_CPU"
_FSDP_READS_ONCE = "FSDP_CPU_RAM_EFFICIENT_LOADING"

_SPELLINGS = {
    "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{EM DASH}": "-", "\N{BULLET}": "*", "\N{MIDDLE DOT}": "-", "×": "x",
    "±": "+/-", "÷": "/", "→": "->", "‖": "||", "≤": "<=", "≥": ">=", "≠": "!=", "“": '"', "”": '"', "‘": "'", "’": "'",
    "─": "-", "│": "|", "├": "|", "└": "`", "ε": "eps", "α": "alpha", "Σ": "sum", "█": "#", "✅": "+", "❌": "x",
}  # fmt: skip
"""Of what the commands print, for terminals without Unicode."""
_GRACE_SECONDS = 20.0
"""How long a process that failed waits for the main one to say the same, and for the launcher to end both."""


def count() -> int:
    """How many processes were started together; 1 where there was no launcher."""
    return int(os.environ["WORLD_SIZE"]) if _launched() else 1


def index() -> int:
    """The place of this process among them, from 0."""
    return int(os.environ["RANK"]) if _launched() else 0


def is_main() -> bool:
    """True for the one that speaks, writes and saves."""
    return index() == 0


def say_error(text: str) -> None:
    """One line on standard error, said once however many processes fail alike.

    A mistake of the user meets every process. The others wait until the main one has said so and the launcher ends
    them; one that is still there then has a trouble of its own and says it, with its place.
    """
    if not is_main():
        time.sleep(_GRACE_SECONDS)
        text = f"{text} (process {index()} of {count()})"
    print(text, file=sys.stderr, flush=True)


def print_what_can_be_shown() -> None:
    """Make standard output and error replace the characters that the terminal cannot show, in place of failing.

    In an ASCII or Latin locale a minus sign or an arrow would end a finished command with a UnicodeEncodeError.
    """
    codecs.register_error("sftknow", _shown)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="sftknow")


def _shown(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for characters that an encoding lacks: a spelling, the letter without its accent, or ``?``.

    Bytes of names that were no text (surrogates) go out as they came in.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return character.encode("ascii", "surrogateescape"), error.start + 1
    bare = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return _SPELLINGS.get(character) or bare or "?", error.start + 1


def end_with_the_starter(lock: Path) -> None:
    """End this process when the one that holds the lock is no more: killed, crashed or done."""

    def wait() -> None:
        wait_for_release(lock)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def sharding_switches() -> list[str]:
    """The switches of accelerate's launcher that are on and spread the weights over the processes."""
    return [name for name in (_FSDP, _DEEPSPEED) if os.environ.get(name) == "true"]


def weights_come_from_another() -> bool:
    """FSDP hands every process its part of what the first process of the machine has read, if it is set to."""
    asked = all(os.environ.get(name, "").lower() in ("true", "1") for name in (_FSDP, _FSDP_READS_ONCE))
    return asked and count() > 1 and os.environ["LOCAL_RANK"] != "0"


def launched_on_cpu() -> bool:
    """True where accelerate's launcher was told to use no GPU."""
    return os.environ.get(_USE_CPU, "").lower() == "true"


def _launched() -> bool:
    """Some schedulers set one or two of these without any launcher; together they are a launcher's."""
    return all(os.environ.get(name, "").isdigit() for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
