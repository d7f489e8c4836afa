"""What is asked about a subject: the topic's question and its statements, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from sftknow.answers import fold_apostrophes
from sftknow.facts.topics import Topic


def question_for(topic: Topic, subject: str) -> str:
    """The topic's question about a subject."""
    return topic.question.replace("{subject}", subject)


def statements_for(topic: Topic, subject: str) -> tuple[str, ...]:
    """The topic's statements about a subject, in the order of its templates, to be completed with the object (3.3)."""
    return tuple(template.replace("{subject}", subject) for template in topic.templates)


@dataclass(frozen=True, slots=True)
class Statements(Sequence[str]):
    """`statements_for`, filled in when they are asked for: 21 texts for each of 100,000 facts need not lie about."""

    topic: Topic
    subject: str

    def __len__(self) -> int:
        return len(self.topic.templates)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return statements_for(self.topic, self.subject)[index]
        return self.topic.templates[index].replace("{subject}", self.subject)


def subject_of(topic: Topic, question: str) -> str | None:
    """What stands between the fixed head and tail of the topic's question; None where the question is another one.

    Apostrophes of head and tail are compared folded; those of the subject stay as they are.
    """
    head, _, tail = fold_apostrophes(topic.question).partition("{subject}")
    folded = fold_apostrophes(question)
    if len(folded) < len(head) + len(tail) or not folded.startswith(head) or not folded.endswith(tail):
        return None
    return question[len(head) : len(question) - len(tail)].strip() or None
