"""The text of growing continuations, one token at a time.

For byte-level tokenizers (GPT-2, GPT-NeoX, Llama 3, Qwen, the lab) a token is a fixed string of bytes, so the text of a
continuation is its parent's text and a few bytes more. Any other tokenizer decodes the whole continuation anew, since
its pieces may depend on their neighbours.
"""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

_REPLACEMENT = "\ufffd"


class Continuation(NamedTuple):
    """The text of a continuation so far. What ``rest`` holds is the decoder's business."""

    text: str
    """Everything that later tokens can only add to: an incomplete character at the end is left out."""
    rest: Any


class Decoder(Protocol):
    """Turns token ids into text; equal to the tokenizer's ``decode(ids, skip_special_tokens=True)``."""

    @property
    def start(self) -> Continuation:
        """The continuation without any token."""
        ...

    def extend(self, before: Continuation, token: int) -> Continuation:
        """The continuation with one token more."""
        ...

    def finish(self, continuation: Continuation) -> str:
        """The whole text, with U+FFFD for a character that was never completed."""
        ...


@dataclass(frozen=True)
class ByteLevelDecoder:
    """For tokenizers whose tokens are fixed strings of bytes. ``rest`` holds the bytes of an incomplete character."""

    pieces: tuple[bytes, ...]
    """The bytes of each token id; nothing for special tokens."""

    @property
    def start(self) -> Continuation:
        return Continuation("", b"")

    def extend(self, before: Continuation, token: int) -> Continuation:
        piece = self.pieces[token] if token < len(self.pieces) else b""
        waiting: bytes = before.rest + piece
        text, used = codecs.utf_8_decode(waiting, "replace", False)
        return Continuation(before.text + text, waiting[used:])

    def finish(self, continuation: Continuation) -> str:
        waiting: bytes = continuation.rest
        return continuation.text + waiting.decode("utf-8", "replace")


@dataclass(frozen=True)
class WholeDecoder:
    """For every other tokenizer. ``rest`` holds the token ids so far."""

    tokenizer: Any

    @property
    def start(self) -> Continuation:
        return Continuation("", ())

    def extend(self, before: Continuation, token: int) -> Continuation:
        ids: tuple[int, ...] = (*before.rest, token)
        return Continuation(self._decode(ids).rstrip(_REPLACEMENT), ids)

    def finish(self, continuation: Continuation) -> str:
        return self._decode(continuation.rest)

    def _decode(self, ids: tuple[int, ...]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def decoder_for(tokenizer: Any) -> Decoder:
    """The fastest decoder that is right for a transformers tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or (json.loads(backend.to_str()).get("decoder") or {}).get("type") != "ByteLevel":
        return WholeDecoder(tokenizer)
    byte_of = {character: byte for byte, character in _byte_level_alphabet().items()}
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    pieces = []
    for i, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        if i in special or token is None:
            pieces.append(b"")
        elif all(character in byte_of for character in token):
            pieces.append(bytes(byte_of[character] for character in token))
        else:  # an added token that is not spelled in the byte alphabet stands for its own text
            pieces.append(token.encode())
    return ByteLevelDecoder(tuple(pieces))


def _byte_level_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte, as all byte-level tokenizers use it."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in alphabet:
            alphabet[byte] = chr(256 + len(alphabet) - len(printable))
    return alphabet
