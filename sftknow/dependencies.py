"""What sftknow leans on inside other packages, beyond what they promise, and the one line where it is missing.

Every such place is a row of ``insides.toml``. `tests/test_dependencies.py` reads the table: it looks every row up in
the installed versions, and it looks through this package for inside names that have no row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from types import ModuleType
from typing import TYPE_CHECKING

from sftknow.errors import DependencyError, MissingExtraError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

QUIET = {
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment variables that keep the Hub's clients from calls that nobody asked for. They are read once, at import."""


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
    from packaging.utils import canonicalize_name

    for requirement in _requirements():
        if canonicalize_name(requirement.name) == canonicalize_name(package):
            return ",".join(sorted(map(str, requirement.specifier), reverse=True))
    return ""


def outside() -> list[str]:
    """Installed packages whose version is outside the range that sftknow works with, each as a few words."""
    found = []
    for requirement in _requirements():
        here = installed(requirement.name)
        if here is not None and not requirement.specifier.contains(here, prereleases=True):
            found.append(f"{requirement.name} {here} (works with {requirement.specifier})")
    return found


def _requirements() -> list[Requirement]:
    """What sftknow asks for, extras included; nothing where it runs from a checkout that is not installed."""
    from packaging.requirements import Requirement  # only a failure asks: `sftknow --help` need not load it

    try:
        return [Requirement(line) for line in requires("sftknow") or ()]
    except PackageNotFoundError:
        return []
