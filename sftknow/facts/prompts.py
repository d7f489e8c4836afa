"""What is asked about a subject: the topic's question and its statements, and the way back."""

from __future__ import annotations

from sftknow.answers import fold_apostrophes
from sftknow.facts.topics import Topic


def question_for(topic: Topic, subject: str) -> str:
    """The topic's question about a subject."""
    return topic.question.replace("{subject}", subject)


def statements_for(topic: Topic, subject: str) -> tuple[str, ...]:
    """The topic's statements about a subject, in the order of its templates, to be completed with the object (3.3)."""
    return tuple(template.replace("{subject}", subject) for template in topic.templates)


def subject_of(topic: Topic, question: str) -> str | None:
    """What stands between the fixed head and tail of the topic's question; None where the question is another one.

    Apostrophes of head and tail are compared folded; those of the subject stay as they are.
    """
    head, _, tail = fold_apostrophes(topic.question).partition("{subject}")
    folded = fold_apostrophes(question)
    if len(folded) < len(head) + len(tail) or not folded.startswith(head) or not folded.endswith(tail):
        return None
    return question[len(head) : len(question) - len(tail)].strip() or None
