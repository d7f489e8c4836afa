"""Options that several commands share, and options made from the fields of option classes."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from sftknow.errors import OptionError
from sftknow.evaluation.options import EvaluationOptions
from sftknow.models.options import ModelOptions
from sftknow.options import K, Options, check_value, explanations
from sftknow.recipes.schema import FactsSection
from sftknow.records import SPLITS
from sftknow.registry import Registered, Registry
from sftknow.shown import wrapped

Commands = Any  # argparse's own type for subparsers is private
R = TypeVar("R")


def command(commands: Commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Add a subcommand whose help ends with an example."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=_Help,
    )
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines; a description is wrapped to the terminal."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:  # argparse has no public way to it
        fill = super()._fill_text if "\n" in text else argparse.HelpFormatter(self._prog)._fill_text
        return fill(text, width, indent)


def add_options(parser: Any, kind: type[Options], *names: str, otherwise: str | None = None, **renamed: str) -> None:
    """An option for each of these fields of a class, with the field's own default, range and explanation.

    Args:
        parser: a parser or a group of one.
        kind: the class.
        names: fields whose option is called as they are.
        otherwise: what holds where the option is not given, in place of the field's default.
        renamed: {option: field} for the others.
    """
    hints, texts, found = get_type_hints(kind), explanations(kind), {field.name: field for field in fields(kind)}
    for option, name in [*((name, name) for name in names), *renamed.items()]:
        flag, field, hint = f"--{option.replace('_', '-')}", found[name], hints[name]
        default = None if field.default is MISSING else field.default
        text = _help(texts.get(name, ""), default, otherwise)
        how: dict[str, Any] = {"action": "store_true"}
        if hint is not bool:
            how = {
                # A list that is empty by default grows with each use of the option.
                "action": "extend" if default == () else "store",
                "type": _reader(kind, name, flag),
                "metavar": field.metadata.get("shown_as") or _metavar(hint, option),
                "required": field.default is field.default_factory,  # neither is there
            }
        for registry in registries(kind, name):
            how |= {"choices": registry, "metavar": "NAME"}
            text += "; there are %(choices)s"  # which argparse looks up where the help is asked for
        parser.add_argument(flag, dest=name, default=argparse.SUPPRESS, help=text, **how)


def options_of(kind: type[K], arguments: argparse.Namespace, **more: Any) -> K:
    """The options that `add_options` read, with the class's defaults for those that were not given.

    Args:
        kind: the class, or one that extends it.
        arguments: of the command line.
        more: further fields.

    Raises:
        OptionError: they do not go together.
    """
    given = {field.name: getattr(arguments, field.name) for field in fields(kind) if hasattr(arguments, field.name)}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in (given | more).items()})


def add_model(parser: argparse.ArgumentParser, name: str, help_text: str) -> None:
    """A positional model argument."""
    parser.add_argument(name, metavar=name.upper(), help=f"{help_text}: a folder, org/name[@revision], or `lab`")


def add_facts(parser: argparse.ArgumentParser) -> None:
    """``--facts`` and how they are read, of commands that ask facts without more ado."""
    parser.add_argument(
        "--facts",
        default="quick",
        metavar="SOURCE",
        help="`quick` (1,200 facts in the box, the default), `lab`, `entity-questions`, a folder, .zip, table, Hub id",
    )
    add_options(parser, FactsSection, "columns", "topics", "synonyms", "numbers")


def facts_of(arguments: argparse.Namespace) -> FactsSection:
    """What `add_facts` read."""
    return options_of(FactsSection, arguments, source=arguments.facts)


def add_wait(parser: Any) -> None:
    """``--wait``: how long a Hub that does not answer is tried again."""
    parser.add_argument(
        "--wait",
        type=seconds,
        metavar="SECONDS",
        help="how long to go on trying while the Hub does not answer (default: a minute)",
    )


def seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(text)
    return value


def add_mastery(parser: Any, **more: Any) -> None:
    """``--mastery``: the graded data set."""
    more = {"help": "graded data set: a folder or org/name[@revision] on the Hub"} | more
    parser.add_argument("--mastery", metavar="DATA", **more)


def add_running(parser: argparse.ArgumentParser, kind: type[ModelOptions] = ModelOptions) -> None:
    """``--device``, ``--batch-size`` and ``--dtype``: how a model is loaded and run."""
    add_options(parser, kind, "device", "batch_size", "dtype")


def add_splits(parser: argparse.ArgumentParser, otherwise: str, default: tuple[str, ...] | None = None) -> None:
    """``--splits``: parts of a graded data set."""
    parser.add_argument(
        "--splits",
        type=_reader(EvaluationOptions, "splits", "--splits"),
        default=default,
        metavar="A,B",
        help=f"of {', '.join(SPLITS)} (default: {otherwise})",
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """``--set``: overrides of recipe keys."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="override a recipe key"
    )


def add_forms(parser: argparse.ArgumentParser, **forms: str) -> None:
    """``--json FILE`` and its like: further forms of a result, by name with what each holds; see `show`."""
    for name, what in forms.items():
        parser.add_argument(f"--{name}", metavar="FILE", help=f"write {what} there; - for standard output")


def show(arguments: argparse.Namespace, result: R, text: Callable[[R], str], **forms: Callable[[R], str]) -> None:
    """Print a result for people, unless a form that was asked for goes to standard output; write the other forms."""
    from sftknow.artifacts.files import write_text

    wanted = {name: getattr(arguments, name) for name in forms if getattr(arguments, name)}
    if "-" not in wanted.values():
        print(wrapped(text(result), sys.stdout))
    for name, place in wanted.items():
        if place == "-":
            sys.stdout.write(forms[name](result).rstrip("\n") + "\n")
        else:
            write_text(Path(place), forms[name](result))


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def comma_separated(text: str | None) -> list[str]:
    """The parts of an option such as ``--tasks xsum,gsm8k``."""
    return [part.strip() for part in text.split(",")] if text else []


def resolve_dataset(text: str) -> Path:
    """The graded data set as a local folder; a Hub id is pulled."""
    from sftknow.run.python import data_folder

    return data_folder(text)


def say(text: str) -> None:
    """One line of progress, on standard error: standard output is for results."""
    print(wrapped(text, sys.stderr), file=sys.stderr, flush=True)


def registries(kind: type[Options], name: str) -> list[Registry[Any]]:
    """The registry that a field names an entry of; none for most fields."""
    marks = getattr(get_type_hints(kind, include_extras=True)[name], "__metadata__", ())
    return [mark.registry for mark in marks if isinstance(mark, Registered)]


def _reader(kind: type[Options], name: str, flag: str) -> Callable[[str], Any]:
    """What reads the option's text; OptionError, which argparse lets through, names the option."""

    def read(text: str) -> Any:
        several = get_origin(get_type_hints(kind)[name]) is tuple
        try:
            return check_value(kind, name, tuple(comma_separated(text)) if several else text, strict=False)
        except OptionError as error:
            raise OptionError(error.named(flag)) from None

    return read


def _metavar(hint: Any, option: str) -> str:
    """What stands for the value in the help: the choices, N for a whole number, X for another one, or the name."""
    kinds = [each for each in get_args(hint) or (hint,) if each is not type(None)]
    for each in (hint, *kinds):
        if get_origin(each) is Literal:
            return f"{{{','.join(get_args(each))}}}"
    if get_origin(hint) is tuple:
        return "A,B"
    return {int: "N", float: "X"}.get(kinds[0], option.upper())


def _help(text: str, default: Any, otherwise: str | None) -> str:
    """The field's docstring as the help of an option; ``None for …`` tells the default."""
    text, _, unset = text.replace("``", "").replace("`", "").rstrip(".").partition("; None for ")
    if default is not None and default is not False:
        value = ",".join(map(str, default)) if isinstance(default, tuple) else default
        unset = f"{value:g}" if isinstance(value, float) else str(value)
    if otherwise or unset:
        text += f" (default: {otherwise or unset})"
    lower = text if re.match(r"[A-Z]{2}|Ray|vLLM", text) else text[:1].lower() + text[1:]
    return lower.replace("%", "%%")
