"""Token divergence on disk: ``divergence.json``, ``examples.parquet`` (a row a fact), ``skipped.parquet``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.artifacts.files import atomic_file, read_json, write_json
from sftknow.artifacts.tables import schema_of, to_record, to_table
from sftknow.errors import RunError
from sftknow.records import TokenDivergence
from sftknow.shown import Shown

SUMMARY = "divergence.json"
EXAMPLES = "examples.parquet"
SKIPPED = "skipped.parquet"


@dataclass(frozen=True, kw_only=True)
class ExampleDivergence:
    """One fact under one fine-tuned model. Divergences in nats, ranks from 1."""

    fact_id: str
    topic: str
    bucket: int
    """Mastery bucket."""
    subject: str
    object: str
    template: int
    """Index of the statement template within its topic, from 0."""
    prompt: str
    """What the base was shown."""
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
    beside_kl: float | None = None
    """`kl` with the fine-tuned model shown the other prompt; None where only one was measured."""
    beside_top: str | None = None
    """`tuned_top` with the other prompt."""


@dataclass(frozen=True, kw_only=True)
class SkippedFact:
    """A fact that could not be measured."""

    fact_id: str
    topic: str
    bucket: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class DivergenceResult(Shown):
    """One fine-tuned model against its base."""

    summary: TokenDivergence
    examples: list[ExampleDivergence]
    skipped: list[SkippedFact]
    """Facts that are in no mean, each with its reason; those with an infinite divergence are examples as well."""

    def headline(self) -> str:
        """The divergence with its interval."""
        found = self.summary
        return (
            f"KL(fine-tuned ‖ base) of the first token, top {found.k}: {found.mean:.4f} nats (95 % interval "
            f"{found.low:.4f} to {found.high:.4f}) over {found.count} test facts of bucket {found.bucket}"
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row a fact."""
        return [dict(vars(example)) for example in self.examples]


SCHEMA = schema_of(ExampleDivergence)
"""Columns of ``examples.parquet``: the fields of `ExampleDivergence`."""

SKIPPED_SCHEMA = schema_of(SkippedFact)
"""Columns of ``skipped.parquet``: the fields of `SkippedFact`."""


_PROMPTS = {
    "statement": "each topic’s statement that the base completes best",
    "question": "the question in the prompt of fine-tuning",
}


def reading_of(found: TokenDivergence) -> str:
    """What the two models were shown and which facts are counted: a divergence says nothing without it."""
    base, tuned = (_PROMPTS[prompt] for prompt in (found.base_prompt, found.tuned_prompt))
    return (
        f"the base is shown {base}, the fine-tuned model {tuned}; counted are facts whose answer starts within the "
        f"first {found.window} tokens of the base’s completion"
    )


def write_divergence(folder: Path, result: DivergenceResult) -> None:
    """Write the three files, each whole or not at all, the summary last.

    Args:
        folder: made where it is not there; files of these names are replaced.
        result: from `sftknow.divergence.analysis.measure_divergence`.
    """
    for name, records, schema in ((EXAMPLES, result.examples, SCHEMA), (SKIPPED, result.skipped, SKIPPED_SCHEMA)):
        with atomic_file(folder / name) as partial:
            pq.write_table(to_table(records, schema), partial)
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
        path = folder / SKIPPED
        skipped: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return DivergenceResult(
            summary=TokenDivergence.from_json(**summary),
            examples=[to_record(ExampleDivergence, row) for row in rows],
            skipped=[to_record(SkippedFact, row) for row in skipped],
        )
    except FileNotFoundError:
        raise RunError(f"{path} is missing; measure the divergence again") from None
    except (pa.ArrowException, OSError, TypeError) as error:
        raise RunError(f"{folder} holds no token divergence ({error}); measure it again") from None
