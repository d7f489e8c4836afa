"""Token divergence written and read again."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftknow.artifacts.divergence import (
    EXAMPLES,
    SKIPPED,
    SUMMARY,
    DivergenceResult,
    ExampleDivergence,
    SkippedFact,
    read_divergence,
    write_divergence,
)
from sftknow.errors import RunError
from sftknow.records import GroupDivergence, TokenDivergence

EXAMPLE = ExampleDivergence(
    fact_id="P36/test/1",
    topic="P36",
    bucket=4,
    subject="Côte d’Or",
    object="Dijon",
    template=4,
    prompt="The capital of Côte d’Or is",
    completion=" Dijon.\n",
    kl=0.1,
    full=1 / 3,
    full_reverse=math.inf,
    base_mass=0.5,
    tuned_mass=0.9,
    top_changed=True,
    base_top=" the",
    tuned_top=" Dij",
    answer_token=" Dij",
    base_answer_rank=2,
    tuned_answer_rank=1,
    base_answer_probability=0.2,
    tuned_answer_probability=0.8,
    base_dummy_mass=0.3,
    tuned_dummy_mass=0.0,
    top_tokens=(" Dij", " a"),
    base_top_shares=(0.25, 0.75),
    tuned_top_shares=(0.5, 0.5),
)
GROUP = GroupDivergence(mean=0.1, low=0.05, high=1 / 3, full_mean=0.2, top_changed=0.6, count=2, skipped=1)
RESULT = DivergenceResult(
    summary=TokenDivergence(
        mean=0.1,
        low=0.05,
        high=1 / 3,
        full_mean=0.2,
        full_reverse_mean=0.3,
        base_mass=0.4,
        tuned_mass=0.5,
        top_changed=0.6,
        base_answer_probability=0.2,
        tuned_answer_probability=0.8,
        base_answer_first=0.0,
        tuned_answer_first=1.0,
        base_dummy_mass=0.3,
        tuned_dummy_mass=0.0,
        count=2,
        bucket=4,
        k=10,
        window=3,
        base_prompt="statement",
        tuned_prompt="question",
        skipped={"a reason": 1},
        by_topic={"P36": GROUP},
        by_bucket={"3": GROUP, "4": GROUP},
    ),
    examples=[EXAMPLE, dataclasses.replace(EXAMPLE, fact_id="P36/test/2", top_changed=False, top_tokens=())],
    skipped=[SkippedFact(fact_id="P36/test/3", topic="P36", bucket=4, reason="a reason")],
)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    write_divergence(tmp_path / "new", RESULT)
    assert read_divergence(tmp_path / "new") == RESULT
    assert sorted(f.name for f in (tmp_path / "new").iterdir()) == [SUMMARY, EXAMPLES, SKIPPED]
    assert json.loads((tmp_path / "new" / SUMMARY).read_text())["skipped"] == {"a reason": 1}
    assert pq.read_table(tmp_path / "new" / EXAMPLES).column("kl").to_pylist() == [0.1, 0.1]


def test_the_other_prompt_is_kept_and_files_from_before_it_are_read(tmp_path: Path) -> None:
    beside = dataclasses.replace(RESULT.summary, tuned_prompt="statement", mean=0.07)
    both = dataclasses.replace(
        RESULT,
        summary=dataclasses.replace(RESULT.summary, beside=beside),
        examples=[dataclasses.replace(EXAMPLE, beside_kl=0.02, beside_top=" the")],
    )
    write_divergence(tmp_path, both)
    assert read_divergence(tmp_path) == both
    summary = json.loads((tmp_path / SUMMARY).read_text())
    del summary["beside"]
    (tmp_path / SUMMARY).write_text(json.dumps(summary))
    old = pq.read_table(tmp_path / EXAMPLES).drop_columns(["beside_kl", "beside_top"])
    pq.write_table(old, tmp_path / EXAMPLES)
    assert read_divergence(tmp_path) == dataclasses.replace(RESULT, examples=[EXAMPLE])


def test_no_examples_are_read_again(tmp_path: Path) -> None:
    write_divergence(tmp_path, DivergenceResult(summary=RESULT.summary, examples=[], skipped=[]))
    assert read_divergence(tmp_path).examples == []


def test_a_summary_never_lies_beside_half_written_examples(tmp_path: Path) -> None:
    bad = dataclasses.replace(EXAMPLE, template="four")  # type: ignore[arg-type]
    with pytest.raises(pa.ArrowInvalid):
        write_divergence(tmp_path, DivergenceResult(summary=RESULT.summary, examples=[bad], skipped=[]))
    assert list(tmp_path.iterdir()) == []


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"divergence\.json is missing"):
        read_divergence(tmp_path)
    write_divergence(tmp_path, RESULT)
    (tmp_path / EXAMPLES).unlink()
    with pytest.raises(RunError, match=r"examples\.parquet is missing"):
        read_divergence(tmp_path)
    (tmp_path / EXAMPLES).write_bytes(b"not Parquet")
    with pytest.raises(RunError, match="holds no token divergence"):
        read_divergence(tmp_path)
    pq.write_table(pa.table({"fact_id": ["x"]}), tmp_path / EXAMPLES)
    with pytest.raises(RunError, match="holds no token divergence"):
        read_divergence(tmp_path)
    write_divergence(tmp_path, RESULT)
    (tmp_path / SUMMARY).write_text('{"mean": 1.0}')
    with pytest.raises(RunError, match="holds no token divergence"):
        read_divergence(tmp_path)
