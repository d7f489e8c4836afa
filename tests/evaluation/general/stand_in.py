"""A synthetic stand-in for XSum and GSM8K: two dozen rows each, made here and nothing like the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.tiny import PLACES


def gsm8k_rows(count: int, *, start: int = 0) -> list[dict[str, str]]:
    rows = []
    for i in range(start, start + count):
        one, two = i % 7 + 1, i % 5 + 2
        question = f"{PLACES[i % len(PLACES)]} has {one} towers and builds {two} more. How many towers are there?"
        rows.append({"question": question, "answer": f"{one}+{two}=<<{one}+{two}={one + two}>>\n#### {one + two}"})
    return rows


def xsum_rows(count: int, *, start: int = 0) -> list[dict[str, str]]:
    rows = []
    for i in range(start, start + count):
        place, other = PLACES[i % len(PLACES)], PLACES[(3 * i + 1) % len(PLACES)]
        rows.append(
            {
                "id": str(i),
                "document": f"The road from {place} was closed on day {i}.\nTravellers went by {other}.",
                "summary": f"The road from {place} to {other} is closed.",
            }
        )
    return rows


def write_stand_in(folder: Path, *, train: int = 16, test: int = 6) -> Path:
    """``folder/gsm8k`` as JSON lines and ``folder/xsum`` as Parquet in the Hub's manner of naming."""
    (folder / "gsm8k").mkdir(parents=True)
    (folder / "xsum" / "data").mkdir(parents=True)
    for split, count, start in (("train", train, 0), ("test", test, 100)):
        lines = [json.dumps(row) for row in gsm8k_rows(count, start=start)]
        (folder / "gsm8k" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        rows = xsum_rows(count, start=start)
        for part in (0, 1):
            name = f"{split}-{part:05}-of-00002.parquet"
            half = rows[part * count // 2 : (part + 1) * count // 2]
            pq.write_table(pa.Table.from_pylist(half), folder / "xsum" / "data" / name)
    return folder
