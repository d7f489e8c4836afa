"""EntityQuestions as a zip file and from its official address (here: a server on loopback)."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sftknow.answers import Synonyms
from sftknow.errors import FactsError
from sftknow.facts import release
from sftknow.facts.release import FolderFiles, ZipFiles, compare, release_hashes
from sftknow.facts.sources import FactSet, load_facts
from sftknow.facts.topics import load_topics

TOPICS, SYNONYMS = load_topics(), Synonyms.load()

FILES: dict[str, list[dict[str, Any]]] = {
    "train/P17.train.json": [
        {"question": "Which country is Seoul Tower located in?", "answers": ["South Korea"]},
        {"question": "Which country is Muscat located in?", "answers": ["Oman"]},
    ],
    "dev/P17.dev.json": [{"question": "Which country is Arden located in?", "answers": ["Romania"]}],
    "test/P17.test.json": [{"question": "Which country is Bo located in?", "answers": ["Ferrol"]}],
}


def contents(**changed: Any) -> dict[str, bytes]:
    files = {name: json.dumps(rows, indent=4).encode() for name, rows in FILES.items()}
    return files | {name: value for name, value in changed.items() if value is not None}


def packed(files: dict[str, bytes], root: str = "dataset/") -> bytes:
    """A zip file as the release is packed, with the other things that lie in one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"__MACOSX/{root}train/P17.train.json", b"\0\x05\x16\x07")
        archive.writestr(f"{root}train/._P17.train.json", b"\0\x05\x16\x07")
        archive.writestr(f"{root}one-off/train/P17.train.json", b"[]")
        archive.writestr(f"{root}LICENSE", "MIT")
        for name, content in files.items():
            archive.writestr(f"{root}{name}", content)
    return buffer.getvalue()


def load(source: Path | str) -> FactSet:
    return load_facts(str(source), topics=TOPICS, synonyms=SYNONYMS)


def unpack(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small files above are the official release."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents().items()}
    monkeypatch.setattr(release, "release_hashes", lambda: hashes)


@pytest.mark.parametrize("root", ["dataset/", "", "a/b/"])
def test_a_zip_file_gives_what_its_folder_gives(tmp_path: Path, root: str) -> None:
    archive = tmp_path / "any name.ZIP"
    archive.write_bytes(packed(contents(), root))
    folder = load(unpack(tmp_path / "folder", contents()))
    zipped = load(archive)
    assert zipped.facts == folder.facts
    assert zipped.sha256 == folder.sha256
    assert [fact.id for fact in zipped.facts] == ["P17/train/1", "P17/train/2", "P17/dev/1", "P17/test/1"]
    assert zipped.official is False
    assert zipped.counts() == {"train": 2, "dev": 1, "test": 1, "testood": 0}


@pytest.mark.usefixtures("pinned")
def test_what_is_official_is_said_and_what_is_altered_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "dataset.zip"
    archive.write_bytes(packed(contents()))
    assert load(archive).official is True
    assert "official EntityQuestions release" in " ".join(load(archive).notes)

    changed = contents(**{"dev/P17.dev.json": contents()["dev/P17.dev.json"].replace(b"Romania", b"Rumania")})
    archive.write_bytes(packed(changed))
    with pytest.raises(FactsError, match=r"dataset.zip is not the official .*: dev/P17.dev.json differs; download it"):
        load(archive)
    # The same files in a folder are a person's own data, and the notes say so.
    own = load(unpack(tmp_path / "own", changed))
    assert own.official is False
    assert own.notes == ("this is not the official EntityQuestions release: dev/P17.dev.json differs",)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"<html>not found</html>", "is not a zip file that can be read"),
        (b"", "is not a zip file that can be read"),
        (packed({}, "x/")[:200], "is not a zip file that can be read"),
        (packed({"facts.jsonl": b"{}"}).replace(b"one-off/train", b"one-off/other"), "holds no train/P"),
    ],
    ids=["a page", "nothing", "cut off", "another archive"],
)
def test_what_is_no_release(tmp_path: Path, content: bytes, complaint: str) -> None:
    archive = tmp_path / "dataset.zip"
    archive.write_bytes(content)
    with pytest.raises(FactsError, match=complaint) as caught:
        load(archive)
    assert str(archive) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    raw = bytearray(packed(contents()))
    with zipfile.ZipFile(io.BytesIO(bytes(raw))) as archive:
        info = archive.getinfo("dataset/test/P17.test.json")
    start = info.header_offset + 30 + len(info.filename)
    raw[start + 5] ^= 0x55
    (tmp_path / "dataset.zip").write_bytes(raw)
    with pytest.raises(FactsError, match=r"dataset.zip/test/P17.test.json is damaged: .*download the zip file again"):
        load(tmp_path / "dataset.zip")


def test_a_bad_row_in_a_zip_file_is_named(tmp_path: Path) -> None:
    bad = contents(**{"test/P17.test.json": b'[{"question": "Which country is Bo located in?", "answers": [""]}]'})
    (tmp_path / "dataset.zip").write_bytes(packed(bad))
    with pytest.raises(FactsError, match=r"dataset.zip/test/P17.test.json, row 1: an answer is empty"):
        load(tmp_path / "dataset.zip")


class Site:
    """What the official address answers, request by request; the last one again and again."""

    def __init__(self, *answers: tuple[int, bytes, int]) -> None:
        self.answers = list(answers)
        self.asked = 0


@contextmanager
def serving(site: Site) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body, announced = site.answers[min(site.asked, len(site.answers) - 1)]
            site.asked += 1
            self.send_response(status)
            self.send_header("Content-Length", str(announced))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/dataset.zip"
        server.shutdown()


@pytest.fixture
def at_the_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pinned: None) -> Any:
    monkeypatch.setenv("SFTKNOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(release.time, "sleep", lambda _: None)

    @contextmanager
    def at(*answers: tuple[int, bytes, int]) -> Iterator[Site]:
        site = Site(*answers)
        with serving(site) as address:
            monkeypatch.setattr(release, "ADDRESS", address)
            yield site

    return at


def test_the_official_release_is_fetched_once(at_the_address: Any, tmp_path: Path) -> None:
    body = packed(contents())
    with at_the_address((200, body, len(body))) as site:
        first, second = load("entity-questions"), load("entity-questions")
        assert site.asked == 1
    assert first.official is True
    assert first.source == "entity-questions"
    assert first == second
    # A cache that has rotted is not used.
    cached = tmp_path / "cache" / "entity-questions.zip"
    cached.write_bytes(cached.read_bytes()[:-40])
    with at_the_address((200, body, len(body))) as site:
        assert load("entity-questions") == first
        assert site.asked == 1
    assert [file.name for file in cached.parent.iterdir()] == [cached.name]


def test_a_lost_connection_and_a_server_in_trouble_are_tried_again(at_the_address: Any) -> None:
    body = packed(contents())
    with at_the_address((503, b"", 0), (200, body[:100], len(body)), (200, body, len(body))) as site:
        assert load("entity-questions").official is True
        assert site.asked == 3


@pytest.mark.parametrize(
    ("answer", "asked", "complaint"),
    [
        ((404, b"", 0), 1, "answered 404 Not Found; download it by other means and give the .zip"),
        ((500, b"", 0), 3, "answered 500 Internal Server Error"),
        ((200, b"PK", 1000), 3, r"could not be fetched: .*2 of 1,000 bytes|IncompleteRead"),
        ((200, b"<html>moved</html>", 18), 1, "sent cannot be used: http://127.0.0.1:.* is not a zip file"),
        (
            (200, (changed := packed(contents(**{"dev/P17.dev.json": b"[]"}))), len(changed)),
            1,
            "sent is not the official EntityQuestions release: dev/P17.dev.json differs",
        ),
    ],
)
def test_what_else_the_address_may_answer(
    at_the_address: Any, tmp_path: Path, answer: tuple[int, bytes, int], asked: int, complaint: str
) -> None:
    with at_the_address(answer) as site:
        with pytest.raises(FactsError, match=complaint) as caught:
            load("entity-questions")
        assert site.asked == asked
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == [], "nothing that is not the release is kept"


def test_an_address_that_does_not_answer(at_the_address: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with at_the_address((200, b"", 0)):
        pass  # closed again
    with pytest.raises(FactsError, match=r"could not be fetched: .*; download it by other means"):
        load("entity-questions")


def test_the_pins_are_of_the_whole_release() -> None:
    names = set(release_hashes())
    assert names == {f"{part}/{t}.{part}.json" for part in ("train", "dev", "test") for t in TOPICS}
    assert all(len(value) == 64 for value in release_hashes().values())


@pytest.mark.entity_questions
def test_the_release_itself(entity_questions: Path, tmp_path: Path) -> None:
    found = compare(FolderFiles(entity_questions))
    assert found.official
    assert found.same == 72
    archive = tmp_path / "dataset.zip"
    archive.write_bytes(packed({name: (entity_questions / name).read_bytes() for name in release_hashes()}))
    assert compare(ZipFiles(archive)).official
    zipped, folder = load(archive), load(entity_questions)
    assert zipped.official is folder.official is True
    assert zipped.facts == folder.facts
    assert [zipped.counts()[s] for s in ("train", "test", "testood")] == [75_944, 9_555, 11_613]
