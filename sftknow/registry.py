"""Where people add what sftknow does not have: a facts source, a sampler, a task, a strategy, a report table.

Each kind has one `Registry`, in the room that uses it. What is registered from outside the package is found in two
ways: by importing the module that registers it, or, for the command line, by an entry point of the group
``sftknow.plugins`` that names this module:

    [project.entry-points."sftknow.plugins"]
    mine = "my_package.my_module"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from sftknow.errors import SftknowError, did_you_mean

GROUP = "sftknow.plugins"

T = TypeVar("T")


class Registry(Generic[T]):
    """Named things of one kind, those that ship and those that others add.

    Args:
        kind: what one of them is called in messages, such as ``facts source``.
        error: raised where there is none of a name, and where a name is taken.
    """

    def __init__(self, kind: str, error: type[SftknowError]) -> None:
        self.kind = kind
        self._error = error
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that adds a class or function under a name and returns it unchanged.

        Raises:
            SftknowError: the name is taken by something else.
        """

        def add(entry: T) -> T:
            there = self._entries.setdefault(name, entry)
            if there is not entry:
                raise self._error(f"there is a {self.kind} called {name} already; register yours under another name")
            return entry

        return add

    def remove(self, name: str) -> None:
        """Take an entry out again, as a test that added one does."""
        self._entries.pop(name, None)

    def get(self, name: str) -> T:
        """The entry of that name.

        Raises:
            SftknowError: there is none; the message names those there are.
        """
        if name not in self._entries:
            load_plugins()
        if name not in self._entries:
            near = did_you_mean(name, self)
            raise self._error(f"there is no {self.kind} called {name}; there are {', '.join(self)}{near}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            load_plugins()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """The names, in the order in which they were registered."""
        load_plugins()
        return iter(tuple(self._entries))


@dataclass(frozen=True)
class Registered:
    """A constraint on a text field of a recipe, for `typing.Annotated`: it names an entry of a registry."""

    registry: Registry[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def known(name: str) -> str:
            if name not in self.registry:
                *others, last = [repr(each) for each in self.registry]
                raise PydanticCustomError("registered", "{wish}", {"wish": f"{', '.join(others)} or {last}"})
            return name

        return core_schema.no_info_after_validator_function(known, handler(source))


def load_plugins() -> None:
    """Import every module that an installed package names in the group ``sftknow.plugins``; each once.

    Raises:
        SftknowError: one of them cannot be imported.
    """
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            raise SftknowError(
                f"the plug-in {point.name} ({point.value}) cannot be imported ({type(error).__name__}: {error}); "
                "mend or uninstall the package that brings it"
            ) from error
