"""The only place that composes rooms: facts → grading → training → evaluation → … → report.

Called, it is `sftknow.run.python.run`: a whole experiment.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """So that ``sftknow.run("lab")`` works though this package has the name of the function."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.__wrapped__(*arguments, **named)

    @property
    def __wrapped__(self) -> Any:
        """The function, for `inspect.signature` and `help`."""
        from sftknow.run.python import run

        return run


sys.modules[__name__].__class__ = _Callable
