"""The files of EntityQuestions: in a folder, in a zip file, or fetched from the data set's official address.

What is official is pinned by content: ``entity_questions.json`` holds the SHA-256 of each of the release's 72 files,
not that of the archive, which may be packed anew without a letter being changed. An archive that has all of these files
must have all of their content. A folder is compared too, and whether it is the release goes into the provenance.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Protocol
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from sftknow.artifacts.files import atomic_file
from sftknow.errors import FactsAwayError, FactsError
from sftknow.progress import progress
from sftknow.resources import cache_folder

OFFICIAL = "entity-questions"
"""What a person writes for the official release."""
ADDRESS = "https://nlp.cs.princeton.edu/projects/entity-questions/dataset.zip"
PARTS = ("train", "dev", "test")
_MEMBER = re.compile(r"(?P<root>(?:.*/)?)(?P<name>(?P<part>train|dev|test)/(?!\.)[^/]+\.(?P=part)\.json)")
_LARGEST = 2**30
_TRIES, _TIMEOUT_S = 3, 60


class Files(Protocol):
    """The data set's files by name, such as ``train/P17.train.json``."""

    @property
    def names(self) -> frozenset[str]:
        """Every file that is there."""
        ...

    def label(self, name: str) -> str:
        """The file's name for messages: where a person finds it."""
        ...

    def read(self, name: str) -> bytes:
        """Raises FactsError where the file cannot be read."""
        ...


@dataclass(frozen=True)
class FolderFiles:
    """Files in a folder."""

    folder: Path

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(
            f"{part}/{file.name}" for part in PARTS for file in (self.folder / part).glob(f"*.{part}.json")
        )

    def label(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise FactsError(f"{self.label(name)} cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class ZipFiles:
    """Files in a zip archive, at its root or in whatever folder they were packed."""

    path: Path

    @cached_property
    def _members(self) -> dict[str, zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                found = [(match, info) for info in archive.infolist() if (match := _MEMBER.fullmatch(info.filename))]
        except (zipfile.BadZipFile, OSError) as error:
            raise FactsError(f"{self.path} is not a zip file that can be read: {error}; download it again") from None
        found = [(match, info) for match, info in found if not match["root"].startswith("__MACOSX/")]
        if not found:
            raise FactsError(
                f"{self.path} holds no train/P….train.json files like EntityQuestions; unpack it and give the folder"
            )
        # The release also holds selections of itself in deeper folders.
        root = min((match["root"] for match, _ in found), key=lambda root: (root.count("/"), root))
        return {match["name"]: info for match, info in found if match["root"] == root}

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(self._members)

    def label(self, name: str) -> str:
        return f"{self.path}/{name}"

    def read(self, name: str) -> bytes:
        info = self._members[name]
        if info.file_size > _LARGEST:
            raise FactsError(f"{self.label(name)} would unpack to {info.file_size:,} bytes; unpack it yourself")
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(info)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise FactsError(f"{self.label(name)} is damaged: {error}; download the zip file again") from None
        except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed in a way that Python cannot undo
            raise FactsError(f"{self.label(name)} cannot be unpacked: {error}; unpack it yourself") from None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Files beside the official release."""

    same: int
    """Files with the release's very content."""
    missing: tuple[str, ...]
    different: tuple[str, ...]

    @property
    def official(self) -> bool:
        """Whether the whole release is there, unchanged."""
        return not self.missing and not self.different

    @property
    def altered(self) -> bool:
        """Whether it has all of the release's files, and not all of its content."""
        return bool(self.different) and not self.missing

    def __str__(self) -> str:
        if self.official:
            return "the official EntityQuestions release, every file's SHA-256 compared"
        odd = [f"{name} differs" for name in self.different] + [f"{name} is missing" for name in self.missing]
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        return f"not the official EntityQuestions release: {', '.join(odd[:3])}{more}"


def release_hashes() -> dict[str, str]:
    """SHA-256 (hex) of each file of the release, by name."""
    hashes: dict[str, str] = json.loads(Path(__file__).with_name("entity_questions.json").read_text(encoding="utf-8"))
    return hashes


def compare(files: Files) -> Comparison:
    """Compare files with the official release's, byte for byte."""
    expected = release_hashes()
    there = sorted(files.names & expected.keys())
    different = tuple(name for name in there if hashlib.sha256(files.read(name)).hexdigest() != expected[name])
    return Comparison(
        same=len(there) - len(different), missing=tuple(sorted(expected.keys() - files.names)), different=different
    )


def official_files() -> ZipFiles:
    """The official release: from this machine's cache where it was fetched before, else from its official address.

    Raises:
        FactsError: it could not be fetched, or is not the release that is known.
    """
    cached = cache_folder() / "entity-questions.zip"
    if cached.is_file():
        try:
            if compare(ZipFiles(cached)).official:
                return ZipFiles(cached)
        except FactsError:
            pass  # a damaged cache is fetched anew
    with atomic_file(cached) as partial:
        _fetch(ADDRESS, partial)
        try:
            found = compare(ZipFiles(partial))
        except FactsError as error:
            said = str(error).replace(str(partial), ADDRESS)
            raise FactsError(f"what {ADDRESS} sent cannot be used: {said}") from None
        if not found.official:
            raise FactsError(f"what {ADDRESS} sent is {found}; get the files elsewhere and give their folder")
    return ZipFiles(cached)


def _fetch(address: str, to: Path) -> None:
    """Download a file; what goes wrong on the way is tried again, what is refused is not."""
    way_out = "download it by other means and give the .zip file as the source"
    for attempt in range(1, _TRIES + 1):
        try:
            _fetch_once(address, to)
        except HTTPError as error:
            if error.code < 500 or attempt == _TRIES:
                raise FactsError(f"{address} answered {error.code} {error.reason}; {way_out}") from None
        except (OSError, HTTPException) as error:
            if attempt == _TRIES:
                said = str(getattr(error, "reason", "") or error) or type(error).__name__
                raise FactsAwayError(f"{address} could not be fetched: {said}; {way_out}") from None
        else:
            return
        time.sleep(attempt)


def _fetch_once(address: str, to: Path) -> None:
    with urlopen(Request(address, headers={"User-Agent": "sftknow"}), timeout=_TIMEOUT_S) as answer:
        size = int(answer.headers.get("Content-Length") or 0)
        with to.open("wb") as file, progress(size >> 10, "downloading EntityQuestions", unit="KiB") as bar:
            while block := answer.read(1 << 18):
                file.write(block)
                bar.update(len(block) >> 10)
    if size and to.stat().st_size != size:
        raise OSError(f"{to.stat().st_size:,} of {size:,} bytes arrived")
