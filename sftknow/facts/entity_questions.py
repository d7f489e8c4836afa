"""EntityQuestions (Sciavolino et al., EMNLP 2021), read as the paper reads it.

A folder or zip file with ``train/P17.train.json``, ``dev/P17.dev.json``, ``test/P17.test.json`` and so on, each a JSON
list of ``{"question": str, "answers": [str, …]}``: the layout of the official release. A person's own data in the same
layout serves too, with that person's own topics.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sftknow.answers import Synonyms, normalize
from sftknow.errors import FactsError, first_line
from sftknow.facts.prompts import subject_of
from sftknow.facts.release import PARTS, Files, FolderFiles
from sftknow.facts.topics import Topic
from sftknow.records import Fact, Split

_PARTS: tuple[tuple[Split, str, str], ...] = (
    ("train", "train", "in-domain"),
    ("dev", "dev", "in-domain"),
    ("test", "test", "in-domain"),
    ("testood", "test", "out-of-domain"),
)
"""Our split, the release's folder, and the domain whose topics are read there (paper, 3.1)."""


def is_entity_questions(folder: Path) -> bool:
    """Whether a folder has the release's layout."""
    return any(name.startswith(("train/", "test/")) for name in FolderFiles(folder).names)


def read_entity_questions(
    files: Files, *, topics: Mapping[str, Topic], synonyms: Synonyms
) -> tuple[list[Fact], dict[str, int]]:
    """The facts of these files, filtered as in the paper, and how many rows each filter removed.

    In each split, rows with more than one answer go, and then all but the first row of each question text, over the
    topics in their order (two topics share one question, so the order matters). The release gives 75,944 training,
    9,555 in-domain test and 11,613 out-of-domain test facts, the sums of the paper's Tables 1 and 8. The dev part is
    made of the in-domain topics' dev files by the same filter. Without dev files there is no dev part. A topic
    without any file is left out and counted as removed (``topics without files``).

    A fact's id is topic, split and row in its file, from 1: ``P36/train/12``. The question is the file's, letter by
    letter; the subject is what stands between the head and the tail of the topic's question.

    Raises:
        FactsError: names the file, the row and what is wrong there.
    """
    _check_relations(files, topics)
    absent = [t.relation for t in topics.values() if not any(_name(p, t) in files.names for p in ("train", "test"))]
    facts: list[Fact] = []
    removed: dict[str, int] = {"topics without files": len(absent)} if absent else {}
    for split, part, domain in _PARTS:
        if split == "dev" and not any(name.startswith("dev/") for name in files.names):
            continue
        seen: set[str] = set()
        for topic in topics.values():
            if topic.domain != domain or topic.relation in absent:
                continue
            for row, question, answers, subject in _rows(files, _name(part, topic), topic):
                if len(answers) > 1 or question in seen:
                    reason = f"{split}: {'more than one answer' if len(answers) > 1 else 'question seen before'}"
                    removed[reason] = removed.get(reason, 0) + 1
                    continue
                seen.add(question)
                facts.append(
                    Fact(
                        id=f"{topic.relation}/{split}/{row}",
                        topic=topic.relation,
                        subject=subject,
                        object=answers[0],
                        aliases=synonyms.aliases(answers[0]),
                        question=question,
                        split=split,
                    )
                )
    return facts, removed


def _name(part: str, topic: Topic) -> str:
    return f"{part}/{topic.relation}.{part}.json"


def _check_relations(files: Files, topics: Mapping[str, Topic]) -> None:
    known = {_name(part, topic) for part in PARTS for topic in topics.values()}
    for name in sorted(files.names - known, key=lambda name: (PARTS.index(name.partition("/")[0]), name)):
        part, _, file = name.partition("/")
        raise FactsError(
            f"{files.label(name)}: no topic is named {file.removesuffix(f'.{part}.json')}; "
            "add its templates to a topics file of your own"
        )


def _rows(files: Files, name: str, topic: Topic) -> Iterator[tuple[int, str, list[str], str]]:
    """Row number from 1, question, answers, subject."""
    file = files.label(name)
    if name not in files.names:
        raise FactsError(f"{file} is missing, though other files of this topic are there; unpack all of them")
    for number, row in enumerate(_read_list(files.read(name), file), start=1):
        where = f"{file}, row {number}"
        if not isinstance(row, dict):
            raise FactsError(f"{where}: must be an object with a question and answers")
        question, answers = row.get("question"), row.get("answers")
        if not isinstance(question, str):
            raise FactsError(f"{where}: the question must be text")
        if not isinstance(answers, list) or not answers:
            raise FactsError(f"{where}: the answers must be a list of at least one text")
        if not all(isinstance(answer, str) for answer in answers):
            raise FactsError(f"{where}: an answer is not text in {answers!r}")
        if not all(normalize(answer) for answer in answers):
            raise FactsError(f"{where}: an answer is empty in {answers!r}")
        if _half_character(question) or any(map(_half_character, answers)):
            raise FactsError(f"{where}: half a character (a lone surrogate) in {question!a} or {answers!a}")
        subject = subject_of(topic, question)
        if subject is None:
            raise FactsError(f"{where}: {question!r} is not {topic.relation}'s question, {topic.question!r}")
        yield number, question, answers, subject


def _half_character(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _read_list(raw: bytes, file: str) -> list[Any]:
    try:
        rows = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        row = _rows_before(raw[: error.start]) + 1
        raise FactsError(f"{file}, row {row}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise FactsError(f"{file} is not JSON: {first_line(error)}") from None
    if not isinstance(rows, list):
        raise FactsError(f"{file} must be a JSON list of objects with a question and answers")
    return rows


def _rows_before(raw: bytes) -> int:
    """How many whole rows end in the bytes before a broken one."""
    text = raw.decode("utf-8-sig", errors="replace")
    decoder, place, rows = json.JSONDecoder(), text.find("[") + 1, 0
    while True:
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        try:
            _, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError:
            return rows
        rows += 1
