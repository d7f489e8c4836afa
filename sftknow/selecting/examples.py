"""What a row of SFT data asks and what it answers, and the texts by which a model is asked the same.

Three layouts, those of TRL: ``prompt`` and ``completion`` as texts, or as lists of messages; and ``messages`` (or
``conversations``, as ShareGPT has them), whose last message is the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sftknow.answers import MatchRule, normalize
from sftknow.records import Fact

Message = Mapping[str, str]

LAYOUTS = (("prompt", "completion"), ("messages",), ("conversations",))
"""Columns that a row of SFT data has."""
RULE = MatchRule(match="word", case_sensitive=False)
"""What a hit is in people's own answers: they may be as short as "4", "A" or "No", which many texts contain."""

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_LONGEST = 60
"""Characters of a short answer: scripts without spaces have no words to count."""
_LABELS = 8
"""So few different answers are labels: solved examples show each, the asked one's own, too."""
_ROW = "one of prompt and completion, messages, or subject, relation and object"


class RowError(Exception):
    """A row that is no example, without its place."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row: what is asked, and the answer that it would teach."""

    id: str
    text: str
    """The prompt as a text, for a model without a chat template."""
    messages: tuple[Message, ...]
    """The prompt as messages, for a model with one."""
    gap: str
    """What stands between the text and the answer."""
    completion: str
    """The answer as it is written."""
    aliases: tuple[str, ...] = ()
    """Other answers that count as correct."""
    topic: str = ""
    """Relation of a fact."""
    fact: Fact | None = None
    cells: Mapping[str, Any] = field(default_factory=dict)
    """The row as it goes into a data set for training."""

    @property
    def answer(self) -> str:
        """The answer without space around it and without the stop of a sentence."""
        bare = self.completion.strip()
        return bare.rstrip(".!").rstrip() or bare

    def is_short(self, words: int) -> bool:
        """Whether a sampled text can be told to be this answer."""
        answer = self.completion.strip()
        return "\n" not in answer and len(answer) <= _LONGEST and len(answer.split()) <= words


def from_row(cells: Mapping[str, Any], identity: str) -> Example | None:
    """The example of a row; None where it has no answer.

    Args:
        cells: by column.
        identity: the example's id.

    Raises:
        RowError: it has other columns, or something else than texts in them.
    """
    given = next((layout for layout in LAYOUTS if all(cells.get(name) is not None for name in layout)), None)
    if given is None:
        raise RowError(f"there is {', '.join(map(repr, cells)) or 'nothing'}, not {_ROW}")
    prompt: Any
    if len(given) == 1:
        *prompt, last = _messages(cells[given[0]], given[0])
        if last["role"] != "assistant":
            raise RowError(f"the last of the {given[0]} is the {last['role']}'s, not an answer of the assistant")
        completion = last["content"]
    else:
        prompt, answer = (cells[name] for name in given)
        if isinstance(answer, str) and isinstance(prompt, str):
            completion = answer
        else:
            prompt, answers = _messages(prompt, "prompt"), _messages(answer, "completion")
            completion = answers[0]["content"] if len(answers) == 1 else ""
            if len(answers) > 1:
                raise RowError("the completion has several messages; put all but the last into the prompt")
    if not normalize(completion):
        return None
    if isinstance(prompt, str):
        space = prompt[len(prompt.rstrip()) :] + completion[: len(completion) - len(completion.lstrip())]
        gap = space or (" " if prompt.endswith(":") else "\n")
        return Example(
            id=identity,
            text=prompt.rstrip(),
            messages=({"role": "user", "content": prompt.strip()},),
            gap=gap,
            completion=completion,
            cells=cells,
        )
    text = "\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)
    return Example(
        id=identity,
        text=f"{text}\nAssistant:".lstrip(),
        messages=tuple(prompt),
        gap=" ",
        completion=completion,
        cells=cells,
    )


def from_fact(fact: Fact, prompt: str, completion: str) -> Example:
    """A fact as an example of question and answer.

    Args:
        fact: graded by its statements; its question serves to hear what a model says in its place.
        prompt: what SFT shows.
        completion: what SFT teaches.
    """
    return Example(
        id=fact.id,
        text=f"Question: {fact.question}\nAnswer:",
        messages=({"role": "user", "content": fact.question},),
        gap=" ",
        completion=fact.object,
        aliases=fact.aliases,
        topic=fact.topic,
        fact=fact,
        cells={"prompt": prompt, "completion": completion, **{name: getattr(fact, name) for name in _OF_FACTS}},
    )


_OF_FACTS = ("id", "topic", "subject", "object", "question")


def _messages(value: Any, column: str) -> list[Message]:
    """A list of messages in one form, whoever wrote it."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)  # a list that was written into a table of texts
        except ValueError:
            raise RowError(f"the {column} are no list of messages but {value[:60]!r}") from None
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise RowError(f"the {column} must be a list of messages with role and content, not {value!r:.60}")
    found: list[Message] = []
    for message in value:
        known = isinstance(message, Mapping)
        role, content = (
            (message.get("role") or message.get("from"), message.get("content", message.get("value")))
            if known
            else (None, None)
        )
        if isinstance(content, list | tuple) and all(isinstance(part, Mapping) for part in content):
            texts = [part.get("text") for part in content]  # parts, as for models that also see
            content = "".join(texts) if all(isinstance(text, str) for text in texts) else content
        if not isinstance(role, str) or not isinstance(content, str):
            raise RowError(f"a message of the {column} has no role and content that are texts: {message!r:.80}")
        found.append({"role": _ROLES.get(role, role), "content": content})
    return found


def shot_sets(examples: Sequence[Example], ranks: Sequence[bytes], count: int) -> list[list[Example]]:
    """Two sets of solved examples for a whole data set, each with spare ones for those who are in it themselves.

    Args:
        examples: with short answers.
        ranks: a random order of them.
        count: examples in a set.

    Returns:
        Two lists of examples with different answers, from the shorter half of the prompts; one or none where there are
        too few.
    """
    middle = sorted(len(example.text) for example in examples)[len(examples) // 2] if examples else 0
    order = sorted(range(len(examples)), key=ranks.__getitem__)
    pool = [examples[i] for i in order if len(examples[i].text) <= middle]
    sets: list[list[Example]] = []
    for _ in range(2):
        found: dict[str, Example] = {}
        for example in pool:
            found.setdefault(normalize(example.answer), example)
            if len(found) == 2 * count:
                break
        taken = {example.id for example in found.values()}
        pool = [example for example in pool if example.id not in taken]
        sets.append(list(found.values()))
    return [found for found in sets if found]


def are_labels(examples: Iterable[Example]) -> bool:
    """Whether the answers are so few different ones that they are rather labels."""
    return len({normalize(example.answer) for example in examples}) <= _LABELS


def solved_before(example: Example, shots: Sequence[Example], count: int, *, labels: bool) -> list[Example]:
    """Those of a set that may stand before an example: never itself, nor its own answer unless answers are labels."""
    own = normalize(example.answer)
    return [s for s in shots if s.id != example.id and (labels or normalize(s.answer) != own)][:count]


def asked_text(example: Example, solved: Sequence[Example]) -> str:
    """The text that a model without a chat template continues; its answer ends with the line."""
    before = [f"{one.text}{one.gap}{one.completion.strip()}" for one in solved]
    return "\n\n".join([*before, example.text + example.gap.rstrip(" \t")])


def asked_messages(example: Example, solved: Sequence[Example]) -> list[Message]:
    """The messages that a chat model answers, solved examples as earlier turns, its own system message first."""
    system = [message for message in example.messages[:1] if message["role"] == "system"]
    turns: list[Message] = []
    for one in solved:
        turns += [message for message in one.messages if message["role"] != "system"]
        turns.append({"role": "assistant", "content": one.completion.strip()})
    return [*system, *turns, *example.messages[len(system) :]]


Ask = Callable[[Example, Sequence[Example]], str]
"""The text by which a model is asked an example after some solved ones."""
