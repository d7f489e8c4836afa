"""The `sftknow` command: find the subcommand, run it, turn errors that a person can mend into one line."""

from __future__ import annotations

import argparse
import errno
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from typing import Any, NoReturn, TextIO

from sftknow import __version__, processes
from sftknow.cli import (
    ability,
    changes,
    check,
    compare,
    divergence,
    evaluate,
    grade,
    lab,
    leaderboard,
    materialize,
    paper,
    publish,
    pull,
    repair,
    report,
    restore,
    run,
    select,
    sft,
    tasks,
    topics,
)
from sftknow.cli.effects import given_options
from sftknow.cli.outputs import refuse_places
from sftknow.dependencies import QUIET, outside
from sftknow.errors import RecipeError, SftknowError, did_you_mean
from sftknow.untrusted import printable

_COMMANDS = (
    run, check, repair, select, grade, sft, evaluate, compare, divergence, changes, restore, ability, materialize,
    report, publish, pull, leaderboard, lab, paper, tasks, topics,
)  # fmt: skip

# What the file system says no to, and a person can change.
_MENDABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR}
_MENDABLE |= {errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST, errno.ENOTEMPTY}

_CHOICE = re.compile(r"(?:argument )?(?P<what>\S+): invalid choice: '(?P<word>.*)' \(choose from (?P<known>.*)\)")
_NUMBER = re.compile(r"-[\d.]")


class _Parser(argparse.ArgumentParser):
    """Tells a mistake on the command line as one in a recipe is told: by an error of one line with the nearest word."""

    def error(self, message: str) -> NoReturn:
        choice = _CHOICE.fullmatch(message)
        if choice:
            known = [name.strip("'") for name in choice["known"].split(", ")]
            near = did_you_mean(choice["word"], known)
            message = f"{choice['what']}: there is no {choice['word']!r}; there are {', '.join(known)}{near}"
        raise RecipeError(f"{message}{' See' if message.endswith('?') else '; see'}: {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but an option that is misspelt is told before those that are missing."""
        words = sys.argv[1:] if args is None else list(args)
        options = self._option_string_actions  # argparse has no public way to its own options
        for word in words[: words.index("--")] if "--" in words else words:
            if not word.startswith("-") or len(word) < 2 or _NUMBER.match(word):
                if self._subparsers is not None:
                    break  # the rest is for the command
                continue
            name = word.partition("=")[0]
            if not any(option.startswith(name) for option in options):
                self.error(f"there is no option {name}{did_you_mean(name, options)}")
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"{' '.join(rest)}: more than this command takes")
        return found, rest


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands. Imports nothing heavy."""
    parser = _Parser(
        prog="sftknow",
        description="What did fine-tuning do to what a language model knows, and how to undo the damage.",
        epilog="Start here: sftknow run lab        (offline, two CPU cores, minutes)",
    )
    parser.add_argument("--version", action="version", version=f"sftknow {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in _COMMANDS:
        module.add_parser(commands)
    return parser


class _Shown:
    """Standard output to which names and texts of others are shown as they are, but for what a terminal would obey."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 well (1, 3: see `check`), 2 the user can mend it, 130 interrupted."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    processes.print_what_can_be_shown()
    try:
        _refuse_names(sys.argv[1:] if argv is None else argv)
        arguments = build_parser().parse_args(argv)
        arguments.given = given_options(build_parser(), argv)
        for rule in getattr(arguments, "rules", ()):
            rule.check(arguments.given)
        refuse_places(arguments)
        if processes.count() > 1 and arguments.run is not sft.run:
            raise RecipeError("a launcher starts `sftknow sft` alone; for whole runs set accelerate.processes")
        with redirect_stdout(_Shown(sys.stdout)):
            code: int | None = arguments.run(arguments)
    except SftknowError as error:
        processes.say_error(printable(f"sftknow: {' '.join(str(error).split())}"))
        return error.exit_code
    except BrokenPipeError:
        # The reader went away (`sftknow … | head`); there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _MENDABLE and not _named(error, sys.argv[1:] if argv is None else argv):
            raise
        where = f" {error.filename}" if error.filename else ""
        processes.say_error(printable(f"sftknow: {error.strerror}:{where}; mend that and start the same command again"))
        return 2
    except (ImportError, AttributeError, TypeError):
        if strange := outside():  # the likeliest cause, beside a traceback that names it nowhere
            processes.say_error(f"sftknow: not the versions that sftknow was made for: {'; '.join(strange)}")
        raise
    except KeyboardInterrupt:
        again = shlex.join(["sftknow", *(sys.argv[1:] if argv is None else argv)])
        goes_on = getattr(arguments, "goes_on", lambda given: False)(arguments.given)
        how = "; what is done is saved. Go on with" if goes_on else ". Start again with"
        print(f"\nsftknow: interrupted{how}: {again}", file=sys.stderr)
        return 130
    return code or 0


def _named(error: OSError, argv: Sequence[str]) -> bool:
    """Whether an error is about a file that the command line itself names, or one below it."""
    place = str(error.filename or "")
    named = [os.path.abspath(word) for word in argv if word.strip("./")]
    return bool(place) and any(os.path.abspath(place).startswith(word) for word in named)


def _refuse_names(argv: Sequence[str]) -> None:
    """A name that is no text in this locale could be neither written down nor shown later."""
    here = []
    with suppress(OSError):  # a folder that is gone is told of where it matters
        here.append(os.getcwd())
    for text in (*argv, *here):
        try:
            text.encode()
        except UnicodeEncodeError:
            way_out = "rename it, or set LC_ALL=C.UTF-8 where it is UTF-8"
            raise RecipeError(f"the name {text!a} cannot be read as text here; {way_out}") from None


if __name__ == "__main__":
    sys.exit(main())
