"""The text of growing continuations.

Most tokenizers spell every token with fixed bytes: byte-level ones (GPT-2, GPT-NeoX, Llama 3, Qwen, the lab) and
SentencePiece ones with byte fallback (Llama 2, Mistral, Gemma). For these a text is put together from its tokens' bytes
without the tokenizer, and it is known beforehand which tokens bring which letters. Any other tokenizer decodes whole
continuations, since its pieces may depend on their neighbours.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_REPLACEMENT = "\ufffd"
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


class Decoder(Protocol):
    """Turns token ids into text. Token ids beyond the tokenizer's own (padded embeddings) are no text."""

    @property
    def pieces(self) -> tuple[bytes, ...] | None:
        """What each token id adds to a text, in UTF-8; nothing for special tokens. None where that is not known."""
        ...

    @property
    def unsettled(self) -> tuple[bool, ...]:
        """Whether the text of a token may change with the next one. Empty where none does."""
        ...

    def settled(self, continuations: Sequence[Sequence[int]]) -> list[str]:
        """The part of each text that later tokens only add to: a character whose bytes may go on is left out."""
        ...

    def whole(self, continuations: Sequence[Sequence[int]]) -> list[str]:
        """The tokenizer's own ``decode(ids, skip_special_tokens=True)`` of each, without any cleaning up."""
        ...


@dataclass(frozen=True)
class ByteLevelDecoder:
    """For tokenizers whose text is the bytes of their tokens, one after the other."""

    pieces: tuple[bytes, ...]
    unsettled: tuple[bool, ...] = ()

    def settled(self, continuations: Sequence[Sequence[int]]) -> list[str]:
        return [codecs.utf_8_decode(self._bytes(ids), "replace", False)[0] for ids in continuations]

    def whole(self, continuations: Sequence[Sequence[int]]) -> list[str]:
        return [self._bytes(ids).decode("utf-8", "replace") for ids in continuations]

    def _bytes(self, ids: Sequence[int]) -> bytes:
        pieces = self.pieces
        try:
            return b"".join([pieces[token] for token in ids])
        except IndexError:
            return b"".join([pieces[token] for token in ids if token < len(pieces)])


@dataclass(frozen=True)
class ByteFallbackDecoder:
    """For SentencePiece tokenizers: tokens are strings, and what none of them spells is written in tokens of one byte.

    A run of byte tokens is text if all of it together is UTF-8, and else U+FFFD for each of its bytes. So nothing of a
    run is settled before the run has ended.
    """

    pieces: tuple[bytes, ...]
    unsettled: tuple[bool, ...]
    is_byte: tuple[bool, ...]
    strip: int
    """Spaces that are taken off the beginning of a text."""

    def settled(self, continuations: Sequence[Sequence[int]]) -> list[str]:
        return [self._text(ids, whole=False) for ids in continuations]

    def whole(self, continuations: Sequence[Sequence[int]]) -> list[str]:
        return [self._text(ids, whole=True) for ids in continuations]

    def _text(self, ids: Sequence[int], *, whole: bool) -> str:
        parts: list[str] = []
        run = b""
        for token in ids:
            piece = self.pieces[token] if token < len(self.pieces) else b""
            if not piece:
                continue
            if self.is_byte[token]:
                run += piece
                continue
            if run:
                parts.append(_run_text(run))
                run = b""
            parts.append(piece.decode())
        if whole and run:
            parts.append(_run_text(run))
        text = "".join(parts)
        spaces = len(text) - len(text.lstrip(" "))
        return text[min(spaces, self.strip) :]


def _run_text(run: bytes) -> str:
    try:
        return run.decode()
    except UnicodeDecodeError:
        return _REPLACEMENT * len(run)


@dataclass(frozen=True)
class WholeDecoder:
    """For every other tokenizer."""

    tokenizer: Any
    ids: int
    """Token ids that the tokenizer has, from 0 on."""
    pieces: None = None
    unsettled: tuple[bool, ...] = ()

    def settled(self, continuations: Sequence[Sequence[int]]) -> list[str]:
        return [text.rstrip(_REPLACEMENT) for text in self.whole(continuations)]

    def whole(self, continuations: Sequence[Sequence[int]]) -> list[str]:
        if not continuations:
            return []
        texts: list[str] = self.tokenizer.batch_decode(
            [[token for token in ids if token < self.ids] for ids in continuations],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return texts


def decoder_for(tokenizer: Any) -> Decoder:
    """The fastest decoder that is right for a transformers tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = _parts(json.loads(backend.to_str()).get("decoder")) if backend is not None else []
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"]:
        return _byte_level(tokenizer)
    plain_strip = kinds[3:] == [] or (
        kinds[3:] == ["Strip"] and parts[3].get("content") == " " and not parts[3].get("stop")
    )
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and plain_strip and "String" in parts[0].get("pattern", {}):
        strip = int(parts[3]["start"]) if kinds[3:] else 0
        return _byte_fallback(tokenizer, parts[0]["pattern"]["String"], parts[0]["content"], strip)
    return WholeDecoder(tokenizer, _id_count(tokenizer))


def _parts(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if not decoder:
        return []
    return list(decoder["decoders"]) if decoder.get("type") == "Sequence" else [decoder]


def _tokens(tokenizer: Any) -> list[str | None]:
    """The spelling of every token id, None for special tokens and holes in the vocabulary."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    spelled = tokenizer.convert_ids_to_tokens(list(range(_id_count(tokenizer))))
    return [None if i in special else token for i, token in enumerate(spelled)]


def _id_count(tokenizer: Any) -> int:
    # Ids may have holes, so that the largest lies beyond their number.
    return int(max(tokenizer.get_vocab().values(), default=-1)) + 1


def _byte_level(tokenizer: Any) -> ByteLevelDecoder:
    byte_of = {character: byte for byte, character in _byte_level_alphabet().items()}
    pieces = []
    for token in _tokens(tokenizer):
        if token is None:
            pieces.append(b"")
        elif all(character in byte_of for character in token):
            pieces.append(bytes(byte_of[character] for character in token))
        else:  # an added token that is not spelled in the byte alphabet stands for its own text
            pieces.append(token.encode())
    return ByteLevelDecoder(tuple(pieces))


def _byte_fallback(tokenizer: Any, pattern: str, content: str, strip: int) -> ByteFallbackDecoder:
    tokens = _tokens(tokenizer)
    is_byte = tuple(token is not None and _BYTE.fullmatch(token) is not None for token in tokens)
    pieces = tuple(
        b"" if token is None else bytes([int(token[3:5], 16)]) if byte else token.replace(pattern, content).encode()
        for token, byte in zip(tokens, is_byte, strict=True)
    )
    # A token without text lets a run of bytes before it go on.
    unsettled = tuple(byte or not piece for byte, piece in zip(is_byte, pieces, strict=True))
    return ByteFallbackDecoder(pieces=pieces, unsettled=unsettled, is_byte=is_byte, strip=strip)


def _byte_level_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte, as all byte-level tokenizers use it."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in alphabet:
            alphabet[byte] = chr(256 + len(alphabet) - len(printable))
    return alphabet
