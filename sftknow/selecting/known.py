"""From sampled answers to what a model knows of an example, and to what it says in its place. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata

from sftknow.answers import Matcher, MatchRule, normalize
from sftknow.artifacts.selections import SelectedExample
from sftknow.stats import wilson

_HABIT = 5
_CASELESS = MatchRule(case_sensitive=False)
SURELY = 0.5
"""A model surely says something where the 95 % interval of that answer's share lies above this."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a model said to one example in one form of asking."""

    hits: int
    tries: int
    text: str
    """The answer that came most often, as it was first written; empty where nothing was said."""
    count: int
    """How often it came."""

    @property
    def surely(self) -> bool:
        """Whether it is sure that the model says `text` more often than all else together."""
        return bool(self.text) and wilson(self.count, self.tries)[0] > SURELY


def heard(texts: Iterable[str], matcher: Matcher, *, one_line: bool) -> Said:
    """Count the hits of sampled texts and find the answer that came most often.

    Args:
        texts: as they were sampled, of one form of asking.
        matcher: of the example's answers.
        one_line: whether an answer ends with its line, as where solved examples follow each other in a text.
    """
    hits = tries = 0
    written: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for text in texts:
        tries += 1
        first = text.strip().split("\n", 1)[0].strip()
        hits += matcher.hit(first if one_line else text)
        same = normalize(first, _CASELESS).rstrip(".!").rstrip()
        if same:
            written.setdefault(same, first)
            counts[same] += 1
    same, count = counts.most_common(1)[0] if counts else ("", 0)
    return Said(hits=hits, tries=tries, text=written.get(same, ""), count=count)


def fifths(scores: Sequence[float]) -> list[int]:
    """The fifth of each score among all, 0 for the lowest to 4; equal scores are in the same one."""
    places = (rankdata(scores, method="average") - 0.5) / max(1, len(scores))
    return [min(4, int(5 * place)) for place in np.atleast_1d(places)]


def without_habits(found: Mapping[str, SelectedExample]) -> tuple[dict[str, SelectedExample], list[str]]:
    """The examples, where an answer that a model gives to whatever it is asked contradicts none of them; and notes.

    A habit is an answer that would contradict more than five examples and a tenth of them all.
    """
    against = Counter(normalize(example.says) for example in found.values() if example.contradicts)
    habits = {said for said, count in against.items() if count > max(_HABIT, len(found) / 10)}
    kept = {
        name: replace(example, contradicts=example.contradicts and normalize(example.says) not in habits)
        for name, example in found.items()
    }
    notes = [
        f"the model says {said!r} surely to {against[said]:,} of them, whatever is asked: that contradicts nothing"
        for said in sorted(habits)
    ]
    return kept, notes
