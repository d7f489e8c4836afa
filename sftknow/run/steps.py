"""A step: what it depends on, where its outputs lie, and the one function that does it.

A run strings steps together, a single command does one, and the dry run asks them what is done. See
docs/extending/step.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftknow.artifacts.stages import Stage

Say = Callable[[str], object]
"""Gets one line for each step that begins."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One piece of work whose results are kept, each in a stage of its own: usually one, or several of one pass."""

    stages: Mapping[str, Stage]
    """By name. Their keys are made from everything that the results depend on."""
    title: str
    """Said when it begins; ``{left}`` stands for the names of the stages that are not done."""
    work: Callable[[Mapping[str, Path]], Iterable[Any]]
    """Does those that are not done: gets their folders by name, yields what to note of each when it is written."""
    one_pass: bool = False
    """All of them are written together and not one after the other."""

    @classmethod
    def of(cls, stage: Stage, title: str, work: Callable[[Path], Any]) -> Step:
        """A step with one stage; ``work`` gets its folder and returns what to note of it."""
        return cls(stages={"": stage}, title=title, work=lambda folders: map(work, folders.values()))

    @property
    def stage(self) -> Stage:
        """The stage of a step that has one."""
        (stage,) = self.stages.values()
        return stage

    @property
    def complete(self) -> bool:
        return all(stage.complete for stage in self.stages.values())

    @property
    def key(self) -> str:
        """SHA-256 (hex) of everything that the result depends on."""
        return self.stage.key

    @property
    def folder(self) -> Path:
        return self.stage.folder

    @property
    def outputs(self) -> Any:
        """What was noted of it. Raises RunError where it is not done."""
        return self.stage.outputs

    def do(self, say: Say) -> None:
        """Do what is not done yet. Partial work of the same key is found by the function that does it."""
        left = {name: stage for name, stage in self.stages.items() if not stage.complete}
        if not left:
            return
        say(self.title.format(left=", ".join(left)))
        if self.one_pass:
            for stage in left.values():
                stage.start()
        results = iter(self.work({name: stage.folder for name, stage in left.items()}))
        for stage in left.values():
            if not self.one_pass:
                stage.start()
            stage.finish(next(results))
