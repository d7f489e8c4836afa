"""Which continuations may have found an answer with their newest token, told without their text.

An answer that appears ends with a character of the newest token. So a continuation is decoded and searched only if its
newest token has a letter that one of the answers ends with. This is a filter: it never passes over an answer, and it
lets most continuations be.

Why it holds for `sftknow.answers.normalize`: an ASCII character at the end of a text changes nothing before it (none
composes with what stands there, folding goes character by character), and what is matched never ends in white space.
Tokens with other characters always pass, as does what follows a token whose text was open.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sftknow.answers import MatchRule, normalize
from sftknow.grading.decoding import Decoder

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Letters = npt.NDArray[np.uint64]
"""Sets of ASCII characters, shape [sets, 2], a bit each. The last bit stands for every other character."""

_OTHER = 127


class CompletionFilter:
    """See the module.

    Args:
        decoder: of the model's tokenizer.
        rule: how answers are compared.
    """

    def __init__(self, decoder: Decoder, rule: MatchRule) -> None:
        self.rule = rule
        self._letters: Letters | None = None
        self._unsettled: Bools = np.zeros(0, dtype=bool)
        if decoder.pieces is not None:
            # One row more, of no letter, for ids beyond the vocabulary.
            self._letters = _sets([_letters_of(piece, rule) for piece in (*decoder.pieces, b"")])
            self._unsettled = np.zeros(len(decoder.pieces) + 1, dtype=bool)
            self._unsettled[: len(decoder.unsettled)] = decoder.unsettled

    def endings(self, answers: Sequence[Sequence[str]]) -> Letters:
        """The characters that each statement's answers end with, shape [statements, 2]."""
        sets: dict[tuple[str, ...], int] = {}
        rows: list[set[int]] = []
        order = []
        for names in answers:
            key = tuple(names)
            if key not in sets:
                sets[key] = len(rows)
                ends = {ord(normalize(name, self.rule)[-1]) for name in key}
                rows.append({_OTHER} | {end for end in ends if end < _OTHER})
            order.append(sets[key])
        return _sets(rows)[order]

    def passes(self, tokens: Ints, before: Ints, endings: Letters) -> Bools:
        """Whether the newest token may have completed an answer.

        Args:
            tokens: newest tokens, shape [rows].
            before: the tokens before them, shape [rows].
            endings: rows of `endings`, shape [rows, 2].
        """
        if self._letters is None:
            return np.ones(len(tokens), dtype=bool)
        last = len(self._letters) - 1
        shared = np.bitwise_and(self._letters[np.minimum(tokens, last)], endings).any(axis=1)
        either: Bools = np.logical_or(shared, self.open(before))
        return either

    def open(self, tokens: Ints) -> Bools:
        """Whether the text of these tokens may still change."""
        if self._letters is None:
            return np.zeros(len(tokens), dtype=bool)
        unsettled: Bools = self._unsettled[np.minimum(tokens, len(self._unsettled) - 1)]
        return unsettled


def _letters_of(piece: bytes, rule: MatchRule) -> set[int]:
    if not piece.isascii():
        return set(range(128))
    return set(normalize(piece.decode("ascii"), rule).encode("ascii"))


def _sets(rows: Sequence[set[int]]) -> Letters:
    bits = np.zeros((len(rows), 128), dtype=bool)
    for i, row in enumerate(rows):
        bits[i, list(row)] = True
    words: Letters = np.packbits(bits, axis=1, bitorder="little").view(np.uint64)
    return words
