"""How many tokens a continuation needs at least before it can hold an answer, so that the hopeless ones end early.

A lower bound, told from the tokens' letters alone. Of answer and text only ASCII characters that are no white space
are looked at: what `sftknow.answers.normalize` finds equal is equal in these too, in the same order and with none
between, since it takes other characters away or keeps them, and composing an accent takes an ASCII letter away.
So a continuation that is given up would have been no hit, whatever had been drawn. Answers that other characters can
spell (the Kelvin sign is "K") are never given up, nor are those of a rule without case, or of tokenizers whose
tokens' letters are not known.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sftknow.answers import MatchRule, normalize
from sftknow.grading.decoding import Decoder

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_SPELLED_OTHERWISE = frozenset("K;'`")
"""What normal forms and folded apostrophes make of characters beyond ASCII."""
_DROPPED = bytes(byte for byte in range(256) if byte >= 128 or chr(byte).isspace())


@dataclass(frozen=True)
class Answer:
    """Its letters, and how many tokens are needed for them."""

    letters: bytes
    after: tuple[int, ...]
    """Tokens needed at least once so many letters stand at the end of the text; of none: from anew."""


class Spelling:
    """The letters of a tokenizer's tokens, made once for all answers.

    Args:
        decoder: of the tokenizer.
        rule: how answers are compared.
    """

    def __init__(self, decoder: Decoder, rule: MatchRule) -> None:
        self.rule = rule
        known = decoder.pieces if rule.case_sensitive else None
        self.pieces: tuple[bytes, ...] | None = None
        if known is not None:
            self.pieces = tuple(piece.translate(None, _DROPPED) for piece in known)
            self._tokens = set(self.pieces) - {b""}
            self._forwards = sorted(self._tokens)
            self._backwards = sorted(piece[::-1] for piece in self._tokens)
            self._all = b" ".join(self._forwards)

    def answer(self, name: str) -> Answer:
        """What is to be known of one."""
        name = normalize(name, self.rule)
        letters = name.encode().translate(None, _DROPPED)
        if self.pieces is None or not name.isascii() or not letters or not _SPELLED_OTHERWISE.isdisjoint(name):
            return Answer(letters, (1,))
        count, far = len(letters), len(letters) + 1
        after = [far] * count
        for start in range(count - 1, 0, -1):
            stops = (after[stop] for stop in range(start + 1, count) if letters[start:stop] in self._tokens)
            after[start] = 1 if _some_begins(self._forwards, letters[start:]) else 1 + min(stops, default=far)
        begun = (after[stop] for stop in range(1, count) if _some_begins(self._backwards, letters[:stop][::-1]))
        after[0] = 1 if letters in self._all else 1 + min(begun, default=far)
        return Answer(letters, tuple(after))


def _some_begins(words: Sequence[bytes], letters: bytes) -> bool:
    """Whether one of the sorted words begins with these letters."""
    place = bisect_left(words, letters)
    return place < len(words) and words[place].startswith(letters)


class Reach:
    """See the module.

    Args:
        spelling: of the model's tokens.
        answers: of each statement.
    """

    def __init__(self, spelling: Spelling, answers: Sequence[tuple[str, ...]]) -> None:
        made = {names: tuple(spelling.answer(name) for name in names) for names in set(answers)}
        self._pieces, self._answers = spelling.pieces or (), [made[names] for names in answers]
        self.anew: Ints = np.array([min(answer.after[0] for answer in each) for each in self._answers], dtype=np.int64)
        """Tokens needed at least by each statement's continuations that have nothing of an answer yet."""

    def hopeless(self, owners: Ints, left: Ints, tokens: Ints, lengths: Ints) -> Bools:
        """Whether no answer fits any more.

        Args:
            owners: the statement of each row, shape [rows].
            left: tokens that each row may still draw, at least one, shape [rows].
            tokens: those drawn, shape [rows, most].
            lengths: how many of them, shape [rows].
        """
        hopeless: Bools = self.anew[owners] > left
        for i in np.flatnonzero(hopeless).tolist():
            hopeless[i] = not self._hopes(self._answers[owners[i]], int(left[i]), tokens[i, : lengths[i]].tolist())
        return hopeless

    def _hopes(self, answers: Sequence[Answer], left: int, tokens: Sequence[int]) -> bool:
        known = len(self._pieces)
        text = b"".join([self._pieces[token] for token in tokens if token < known])
        return any(
            answer.letters in text  # not found yet, where later tokens may still change the text
            or any(need <= left and text.endswith(answer.letters[:n]) for n, need in enumerate(answer.after) if n)
            for answer in answers
        )
