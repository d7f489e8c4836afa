"""Damaged files: bytes flipped, cut and put in, JSON values where others belong."""

from __future__ import annotations

import json
import struct
from typing import Any

from hypothesis import strategies as st

# Texts of JSON that stand in the place of a value; json.dumps cannot write all of them.
_STRANGE = [
    "null", "true", "-1", "0", "7", "1.5", "1e400", "-1e308", "NaN", "-Infinity", "9" * 5000, str(2**63), str(2**200),
    '""', '"x"', '"../../etc/passwd"', '"/proc/self/mem"', r'"\u0000"', r'"\ud800"', f'"{"n" * 300}"',
    '"\\n\\r\\u001b[2J"', "[]", "{}", "[null]", '{"a": {}}', "[" * 100 + "]" * 100,
    "[" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000,
    '{"a": 1, "a": 2}', "[[1, 2], [3]]", "", "nonsense",
]  # fmt: skip
_MARK = "a place for something strange"


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a JSON value stand."""
    found = [path]
    if isinstance(value, dict):
        found += [place for key in value for place in _places(value[key], (*path, key))]
    elif isinstance(value, list):
        found += [place for i in range(min(len(value), 3)) for place in _places(value[i], (*path, i))]
    return found


def _replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = _replaced(value[path[0]], path[1:], by)
    return copied


@st.composite
def damaged_json(draw: st.DrawFn, content: Any) -> bytes:
    """A JSON value with one value exchanged, a key gone, or a key too many."""
    place = draw(st.sampled_from(_places(content)))
    if place and isinstance(place[-1], str) and draw(st.integers(0, 3)) == 0:
        above = content
        for key in place[:-1]:
            above = above[key]
        rest = {key: value for key, value in above.items() if key != place[-1]}
        strange = draw(st.sampled_from(["", "\0", "\ud800", "n" * 300, "__metadata__", "x"]))
        kept = rest if draw(st.booleans()) else {**rest, strange: above[place[-1]]}
        return json.dumps(_replaced(content, place[:-1], kept)).encode()
    text = json.dumps(_replaced(content, place, _MARK))
    return text.replace(f'"{_MARK}"', draw(st.sampled_from(_STRANGE))).encode()


@st.composite
def damaged_bytes(draw: st.DrawFn, raw: bytes, near: int | None = None) -> bytes:
    """Bytes with some flipped, cut off, doubled or put in; most of them among the first ``near``."""
    for _ in range(draw(st.integers(1, 3))):
        length = min(near or len(raw), len(raw)) if draw(st.integers(0, 3)) else len(raw)
        at = draw(st.integers(0, max(length - 1, 0)))
        some = draw(st.binary(min_size=1, max_size=9))
        how = draw(st.sampled_from(["over", "in", "cut", "gone", "behind"]))
        if how == "over":
            raw = raw[:at] + some + raw[at + len(some) :]
        elif how == "in":
            raw = raw[:at] + some + raw[at:]
        elif how == "cut":
            raw = raw[:at]
        elif how == "gone":
            raw = raw[:at] + raw[at + len(some) :]
        else:
            raw += some
    return raw


@st.composite
def damaged_safetensors(draw: st.DrawFn, raw: bytes) -> bytes:
    """A safetensors file with damage to its bytes, or to its header, whose length then fits or not."""
    length = struct.unpack("<Q", raw[:8])[0]
    if draw(st.booleans()):
        return draw(damaged_bytes(raw, 8 + length))
    header = draw(damaged_json(json.loads(raw[8 : 8 + length])))
    said = draw(st.sampled_from([len(header), len(header), len(header), len(header) + 8, 0, 2**63, 100_000_001]))
    return struct.pack("<Q", said) + header + raw[8 + length :]
