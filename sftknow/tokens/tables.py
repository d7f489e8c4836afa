"""Token divergence on disk: ``divergence.json`` (the summary) and ``examples.parquet`` (a row a fact)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.errors import RunError
from sftknow.records import TokenDivergence
from sftknow.storage.artifacts import atomic_file, read_json, write_json

SUMMARY = "divergence.json"
EXAMPLES = "examples.parquet"


@dataclass(frozen=True, kw_only=True)
class ExampleDivergence:
    """One fact under one fine-tuned model. Divergences in nats, ranks from 1."""

    fact_id: str
    topic: str
    subject: str
    object: str
    template: int
    prompt: str
    completion: str
    """The base's greedy completion."""
    kl: float
    """KL(fine-tuned ‖ base) over the fine-tuned model's k largest logits, re-normalised."""
    full: float
    """KL(fine-tuned ‖ base) over the whole vocabulary."""
    full_reverse: float
    """KL(base ‖ fine-tuned) over the whole vocabulary."""
    base_mass: float
    """Probability of the k ids in the base before re-normalising."""
    tuned_mass: float
    top_changed: bool
    base_top: str
    """The base's most likely first token, as text."""
    tuned_top: str
    answer_token: str
    """First token of the object."""
    base_answer_rank: int
    tuned_answer_rank: int
    base_answer_probability: float
    tuned_answer_probability: float
    base_dummy_mass: float
    """Probability of "the", "a" and "an" as the first token."""
    tuned_dummy_mass: float
    top_tokens: tuple[str, ...]
    """The k ids as text, the fine-tuned model's likeliest first."""
    base_top_shares: tuple[float, ...]
    """Their probabilities in the base, re-normalised (Figure 3)."""
    tuned_top_shares: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class DivergenceResult:
    """One fine-tuned model against its base."""

    summary: TokenDivergence
    examples: list[ExampleDivergence]


_TYPES: dict[str, pa.DataType] = {
    "str": pa.string(),
    "int": pa.int32(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "tuple[str, ...]": pa.list_(pa.string()),
    "tuple[float, ...]": pa.list_(pa.float64()),
}

SCHEMA = pa.schema([(field.name, _TYPES[str(field.type)]) for field in dataclasses.fields(ExampleDivergence)])
"""Columns of ``examples.parquet``: the fields of `ExampleDivergence`."""


def write_divergence(folder: Path, result: DivergenceResult) -> None:
    """Write both files, each whole or not at all, the summary last.

    Args:
        folder: made where it is not there; files of these names are replaced.
        result: from `measure_divergence`.
    """
    rows = [dataclasses.asdict(example) for example in result.examples]
    with atomic_file(folder / EXAMPLES) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), partial)
    write_json(folder / SUMMARY, result.summary)


def read_divergence(folder: Path) -> DivergenceResult:
    """What `write_divergence` wrote.

    Raises:
        RunError: a file is missing, damaged, or holds something else.
    """
    summary = read_json(folder / SUMMARY)
    path = folder / EXAMPLES
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return DivergenceResult(summary=TokenDivergence(**summary), examples=[_example(row) for row in rows])
    except FileNotFoundError:
        raise RunError(f"{path} is missing; measure the divergence again") from None
    except (pa.ArrowException, OSError, TypeError) as error:
        raise RunError(f"{folder} holds no token divergence ({error}); measure it again") from None


def _example(row: dict[str, Any]) -> ExampleDivergence:
    plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in row.items()}
    return ExampleDivergence(**plain)
