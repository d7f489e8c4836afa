"""What a repair must not lose: the answers to the facts' questions, prompts of one's own, or a task of lm-eval."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from sftknow.answers import Matcher
from sftknow.artifacts.files import digest, file_sha256, read_json, write_json
from sftknow.errors import FactsError
from sftknow.evaluation.any_task import AnyTask
from sftknow.grading.sampling import GREEDY
from sftknow.models.limits import most_positions, refuse_long
from sftknow.models.loading import load_config
from sftknow.records import Fact
from sftknow.run.asking import RULE, Asking, Side

Part = Literal["choosing", "confirming"]
_ROOM = 8
"""Tokens that an answer may be longer than the longest expected one."""


def part_of(seed: int, name: str) -> Part:
    """Which half a fact or row belongs to: by a hash, so that nothing else decides about it."""
    return "choosing" if hashlib.sha256(f"{seed}\0half\0{name}".encode()).digest()[0] & 1 else "confirming"


class Keep(Protocol):
    """Something with rows that a model is right about or wrong."""

    words: str
    """What is kept, for people."""

    @property
    def key(self) -> object:
        """Identifies the rows."""

    def rows(self, part: Part, facts: Sequence[Fact]) -> Sequence[str]:
        """Ids of the rows that are asked by the time that these facts of a part are asked."""
        ...

    def scores(self, asking: Asking, side: Side, rows: Sequence[str]) -> Mapping[str, float]:
        """Between 0 and 1, by id; kept on disk as soon as they are there."""
        ...


class Questions:
    """The facts' own questions, in the model's chat template where it has one."""

    words = "the answers to the facts' questions"
    key = "questions"

    def __init__(self, facts: Sequence[Fact]) -> None:
        self._facts = {fact.id: fact for fact in facts}

    def rows(self, part: Part, facts: Sequence[Fact]) -> Sequence[str]:
        return [fact.id for fact in facts]

    def scores(self, asking: Asking, side: Side, rows: Sequence[str]) -> Mapping[str, float]:
        facts = [self._facts[row] for row in rows]
        return _right(facts, asking.questions(side, facts))


class Prompts:
    """Prompts with their answers, from a JSONL file; asked greedily, in the chat template where the model has one.

    Args:
        file: lines with ``prompt`` (a text) and ``answer`` (a text, or a list of texts that all count).
        seed: deals the rows to the halves.
        most: rows that are asked at most.

    Raises:
        FactsError: the file cannot be read, or a line is none of that.
    """

    def __init__(self, file: Path, seed: int, most: int) -> None:
        rows = [_prompt(file, number, line) for number, line in enumerate(_lines(file), 1) if line.strip()]
        ordered = sorted(rows, key=lambda row: hashlib.sha256(f"{seed}\0{row.id}".encode()).digest())[:most]
        self._rows = {row.id: row for row in ordered}
        self._halves = _halves(list(self._rows), seed, str(file))
        self.words, self.key = f"the answers of {file.name}", file_sha256(file)

    def rows(self, part: Part, facts: Sequence[Fact]) -> Sequence[str]:
        return self._halves[part][: len(facts)]

    def scores(self, asking: Asking, side: Side, rows: Sequence[str]) -> Mapping[str, float]:
        asked = [self._rows[row] for row in rows]
        texts = [(row, (side.question(row) if side.chat else row.question,)) for row in asked]
        answers = [answer for row in asked for answer in row.answers]
        new = max([asking.options.max_new_tokens, *(len(ids) + _ROOM for ids in side.tokenizer(answers)["input_ids"])])
        refuse_long(
            side.model.name,
            side.tokenizer,
            [text for _, shown in texts for text in shown],
            new_tokens=new,
            positions=most_positions(load_config(side.model.ref)),
            way_out="Give shorter prompts",
        )
        return _right(asked, asking.texts(side, texts, "keep", 1, temperature=GREEDY, max_new_tokens=new))


class Task:
    """A task of lm-eval, scored as it scores it.

    Args:
        name: of a task or group, or the YAML file of a task of one's own.
        seed, most: as for `Prompts`.
        batch_size: prompts a batch.

    Raises:
        GeneralTaskError: as `AnyTask`.
    """

    def __init__(self, name: str, seed: int, most: int, batch_size: int) -> None:
        self._task = AnyTask(name, batch_size=batch_size)
        ordered = sorted(self._task.rows, key=lambda row: hashlib.sha256(f"{seed}\0{row}".encode()).digest())[:most]
        self._halves = _halves(ordered, seed, name)
        self.words, self.key = f"{name} ({self._task.metric})", ["lm-eval", name, ordered]

    def rows(self, part: Part, facts: Sequence[Fact]) -> Sequence[str]:
        return self._halves[part][: len(facts)]

    def scores(self, asking: Asking, side: Side, rows: Sequence[str]) -> Mapping[str, float]:
        file = side.work / "keep" / f"{digest([self.key, list(rows)])[:16]}.json"
        if not file.is_file():
            found = self._task.scores(side.sampler.model, side.tokenizer, rows)  # type: ignore[attr-defined]
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, found)
        scores: Mapping[str, float] = read_json(file)
        return scores


def keep_of(text: str | None, facts: Sequence[Fact], *, seed: int, most: int, batch_size: int) -> Keep:
    """What ``--keep`` asks for: a JSONL file, a task of lm-eval, or without it the facts' questions."""
    if text is None:
        return Questions(facts)
    if Path(text).suffix in (".jsonl", ".json"):
        return Prompts(Path(text).expanduser(), seed, most)
    return Task(text, seed, most, batch_size)


def _right(facts: Sequence[Fact], said: Mapping[str, Sequence[str]]) -> dict[str, float]:
    found = {}
    for fact in facts:
        matcher = Matcher(fact.answers, RULE)
        found[fact.id] = float(np.mean([matcher.contains(text) for text in said[fact.id]]))
    return found


def _halves(rows: Sequence[str], seed: int, where: str) -> dict[Part, list[str]]:
    halves: dict[Part, list[str]] = {"choosing": [], "confirming": []}
    for row in rows:
        halves[part_of(seed, row)].append(row)
    if not all(halves.values()):
        raise FactsError(f"{where} has {len(rows)} rows, which are too few for two halves; give more, best hundreds")
    return halves


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FactsError(f"{file} cannot be read ({error}); give a JSONL file of prompts and answers") from None


def _prompt(file: Path, number: int, line: str) -> Fact:
    try:
        row = json.loads(line)
        prompt, answer = row["prompt"], row["answer"]
        answers = tuple(answer) if isinstance(answer, list) else (answer,)
    except (ValueError, KeyError, TypeError):
        prompt, answers = None, ()
    if not isinstance(prompt, str) or not prompt or not answers or not all(isinstance(a, str) and a for a in answers):
        raise FactsError(f'{file}, line {number}: give {{"prompt": "…", "answer": "…"}}, both texts')
    return Fact(
        id=f"{number}-{digest([prompt, answers])[:12]}",
        topic="keep",
        subject=prompt,
        object=answers[0],
        aliases=answers[1:],
        question=prompt,
        split="test",
    )
