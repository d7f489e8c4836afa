"""What sftknow leans on inside other packages, beyond what they promise, and the one line where it is missing.

Every such place is a row of ``insides.toml``. `tests/test_dependencies.py` reads the table: it looks every row up in
the installed versions, and it looks through this package for inside names that have no row.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from types import ModuleType
from typing import Literal

from sftknow.errors import DependencyError, MissingExtraError

QUIET = {
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment variables that keep the Hub's clients from calls that nobody asked for. They are read once, at import."""


@dataclass(frozen=True, kw_only=True)
class Inside:
    """One place where sftknow leans on the inside of another package."""

    package: str
    """Name of the distribution."""
    what: str
    """By `kind`: ``package.module.Class.attribute``, ``package.module.function(argument)``, or words of its source."""
    kind: Literal["name", "argument", "source"]
    """An importable name, an argument, or words that stand in the package's source: environment variables, attributes
    that are set at run time, file names, logger names, error texts."""
    where: tuple[str, ...]
    """The modules of sftknow that lean on it, below ``sftknow/``."""
    why: str
    since: str
    """The first version that is known to have it: the lower bound of what is tested, or that in which it came."""
    without: str
    """What happens where it is missing: ``refused`` with the one line of `DependencyError`, or what is done instead."""


def insides() -> list[Inside]:
    """The rows of ``sftknow/insides.toml``."""
    rows = tomllib.loads(Path(__file__).with_name("insides.toml").read_text(encoding="utf-8"))["inside"]
    return [Inside(**{**row, "where": tuple(row["where"])}) for row in rows]


@contextmanager
def needs(package: str) -> Iterator[None]:
    """Within the block a name that is missing in a package ends in one line instead of a traceback.

    Args:
        package: name of the distribution whose insides the block uses.

    Raises:
        DependencyError: the block raised ImportError or AttributeError about something in an installed package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if installed(package) is None or not (error.name or "").startswith(f"{package}."):
            raise
        raise unsuitable(package, str(error.name)) from error
    except (ImportError, AttributeError) as error:
        raise unsuitable(package, f"a name ({str(error).partition(' (')[0]})") from error


def import_extra(module: str, extra: str) -> ModuleType:
    """A module of a package that only one corner needs.

    Raises:
        MissingExtraError: it is not installed; the message is the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise MissingExtraError(module.partition(".")[0], extra) from None


def unsuitable(package: str, lacks: str) -> DependencyError:
    """The error that names the installed version, what it lacks, and the versions that work."""
    wanted = supported(package)
    return DependencyError(
        f"{package} {installed(package) or 'is not installed and'} lacks {lacks}, which sftknow needs; it works with "
        f"{package} {wanted or 'of another version'}: pip install '{package}{wanted}'"
    )


def installed(package: str) -> str | None:
    """The installed version, None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def supported(package: str) -> str:
    """The versions that sftknow works with, as pip writes them, such as ``>=5.19,<6``; empty where none are named."""
    try:
        named = requires("sftknow") or []
    except PackageNotFoundError:  # run from a checkout that is not installed
        return ""
    for line in named:
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*)", line)
        if match and _normal(match[1]) == _normal(package):
            return ",".join(sorted((part.strip() for part in match[2].split(",")), reverse=True))
    return ""


def outside() -> list[str]:
    """Installed packages whose version is outside the range that sftknow works with, each as a few words."""
    from packaging.requirements import Requirement

    try:
        named = requires("sftknow") or []
    except PackageNotFoundError:
        return []
    found = []
    for line in named:
        requirement = Requirement(line)
        here = installed(requirement.name)
        if here is not None and not requirement.specifier.contains(here, prereleases=True):
            found.append(f"{requirement.name} {here} (works with {requirement.specifier})")
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
