"""Every error that sftknow raises for its user, in one tree.

    SftknowError              the user can mend it: one line, exit code 2, nothing lost
    ├── RecipeError           a recipe file or a --set that cannot be used
    │   └── OptionError       a value that an option cannot have; carries the option's keys
    ├── FactsError            a facts source, a topics file or a synonyms file
    │   └── FactsAwayError    it may be right, and cannot be fetched now
    ├── MasteryDataError      a graded (mastery-split) data set
    ├── GeneralTaskError      a general-ability task (xsum, gsm8k) or its data
    ├── ModelError            a model or tokenizer that cannot be loaded or used
    ├── CheckpointError       a checkpoint's files: missing tensors, shapes, NaN, format
    ├── DeviceError           a device or dtype that this machine does not have
    ├── RunError              a run directory: damaged, in use, of another recipe
    ├── ClusterError          a Ray cluster: not reachable, too small, another version on a node
    ├── HubError              the Hub refused or could not be reached; carries the repo id
    ├── MissingExtraError     an optional package; carries the exact install command
    └── DependencyError       a version of another package that lacks what sftknow needs of it

A message names the thing that is wrong and the way out, in one line. Anything else that escapes is a bug
in sftknow and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class SftknowError(Exception):
    """Base of all errors a user can mend. ``str(error)`` is one line that names the thing and the way out."""

    exit_code = 2


class RecipeError(SftknowError):
    """A recipe, or a ``--set`` on top of it, cannot be used."""


class OptionError(RecipeError):
    """An option cannot have that value.

    Args:
        complaint: what is wrong, with ``{key}`` where the option's name belongs.
        keys: the sections and the field that lead to it, such as ``("grid", "sizes", "0")``.
    """

    def __init__(self, complaint: str, keys: Sequence[str] = ()) -> None:
        super().__init__(complaint, tuple(keys))
        self.complaint, self.keys = complaint, tuple(keys)

    def __str__(self) -> str:
        return self.named(".".join(self.keys))

    def named(self, name: str) -> str:
        """The message with the option called by that name."""
        return self.complaint.replace("{key}", name, 1)


class FactsError(SftknowError):
    """A source of facts, a topics file or a synonyms file cannot be used."""


class FactsAwayError(FactsError):
    """A source of facts cannot be fetched now; its name may be right."""


class MasteryDataError(SftknowError):
    """A graded data set is missing, incomplete, or not what was asked for."""


class GeneralTaskError(SftknowError):
    """There is no such general-ability task, or its data cannot be used."""


class ModelError(SftknowError):
    """A model or its tokenizer cannot be loaded or cannot be used for this."""


class CheckpointError(SftknowError):
    """The files of a checkpoint cannot be read, compared or written."""


class DeviceError(SftknowError):
    """This machine lacks the device, or the device lacks the dtype, that was asked for."""


class RunError(SftknowError):
    """A run directory is damaged, in use by another process, or belongs to something else."""


class ClusterError(SftknowError):
    """A Ray cluster cannot be reached, holds no such worker, or a node of it cannot do the work."""


class HubError(SftknowError):
    """The Hub refused or could not be reached.

    Attributes:
        repo_id: the repository in question, or None where there is none.
        reason: why, for callers that go on without the repository, such as ``missing`` (`sftknow.models.hub_client`);
            None where nobody has to tell.
    """

    def __init__(self, message: str, *, repo_id: str | None = None, reason: str | None = None) -> None:
        super().__init__(message)
        self.repo_id = repo_id
        self.reason = reason


class MissingExtraError(SftknowError):
    """An optional package is not installed.

    Attributes:
        extra: the extra of this package that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'sftknow[{extra}]'")
        self.extra = extra


class DependencyError(SftknowError):
    """An installed package is of a version that lacks what sftknow needs; the message names the versions that work."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest of the known words, to go behind a complaint: ``; did you mean X?``; empty where none is near."""
    found = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), list(found), n=1)
    return f"; did you mean {found[near[0]]}?" if near else ""


def first_line(error: BaseException) -> str:
    """What another library's error says first, for a message of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
