"""Options that would do nothing are refused by name.

Each command says where it adds its options beside which others they have no effect, and which others they need:

    no_effect(parser, "--shard-size", beside=("--patch",))
    no_effect(parser, "--mastery", needs=("--choose-on",))
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sftknow.errors import RecipeError


@dataclass(frozen=True)
class Case:
    """An option that is given with some of the values that it may have."""

    option: str
    holds: Callable[[Any], bool]
    """Whether it is given so, by its value."""
    words: str
    """What to call it."""


Condition = str | Case
"""An option such as ``--plan``, an option with a value such as ``--engine=ray``, or a `Case`."""


@dataclass(frozen=True)
class Rule:
    """What `no_effect` was told."""

    options: tuple[str, ...]
    needs: tuple[Condition, ...]
    beside: tuple[Condition, ...]

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise RecipeError where an option of this rule is given and has no effect."""
        for option in self.options:
            if option not in given:
                continue
            against = next((_words(each) for each in self.beside if _holds(each, given)), None)
            if against:
                raise RecipeError(f"{option} and {against} do not go together: {option} would do nothing; leave it out")
            if self.needs and not any(_holds(each, given) for each in self.needs):
                wanted = " or ".join(map(_words, self.needs))
                raise RecipeError(f"{option} does nothing without {wanted}; add that or leave {option} out")


def no_effect(
    parser: argparse.ArgumentParser, *options: str, needs: Sequence[Condition] = (), beside: Sequence[Condition] = ()
) -> None:
    """Declare when options of a command have no effect.

    Args:
        parser: the command's.
        options: as they are written; a positional argument by its name in the help.
        needs: without one of these they have none.
        beside: with one of these they have none.
    """
    rules = [*rules_of(parser), Rule(options, tuple(needs), tuple(beside))]
    parser.set_defaults(rules=rules)


def rules_of(parser: argparse.ArgumentParser) -> list[Rule]:
    """What was declared for a command."""
    return parser.get_default("rules") or []


def given_options(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict[str, Any]:
    """The options that a command line itself gives, without defaults: {as it is written: value}.

    Args:
        parser: of the whole command line; of no use afterwards.
        argv: a command line that it accepts.
    """
    _without_defaults(parser)
    found = vars(parser.parse_args(argv))
    return {name: found[place] for place, name in found["names"].items() if place in found}


def refuse(given: Mapping[str, Any], options: Iterable[str], why: str) -> None:
    """Raise RecipeError for the first of these options that is given. For what only the work itself can tell."""
    for option in options:
        if option in given:
            raise RecipeError(f"{option} does nothing here: {why}; leave it out")


def _without_defaults(parser: argparse.ArgumentParser) -> None:
    names = {}
    for action in parser._actions:  # argparse has no public way to its own options
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _without_defaults(each)
        else:
            action.default = argparse.SUPPRESS
            names[action.dest] = action.option_strings[-1] if action.option_strings else str(action.metavar)
    parser.set_defaults(names=names)


def _holds(condition: Condition, given: Mapping[str, Any]) -> bool:
    if isinstance(condition, Case):
        return condition.option in given and condition.holds(given[condition.option])
    option, equals, value = condition.partition("=")
    return option in given and (not equals or str(given[option]) == value)


def _words(condition: Condition) -> str:
    return condition.words if isinstance(condition, Case) else condition.replace("=", " ")
