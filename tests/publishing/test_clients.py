"""The real clients, in a process of their own with an empty cache, on what was published."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sftknow.artifacts.mastery_data import write_mastery_data
from sftknow.publishing.publish import plan_publication, publish
from tests.hub_server import HubServer
from tests.tiny import graded, tiny_facts

SCRIPT = """
import json
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

found = {}
rows = load_dataset("org/facts-graded", "test", split="bucket_3")
found["bucket_3"] = [rows.num_rows, rows.column_names, rows["fact_id"][:]]
found["dev"] = sorted(load_dataset("org/facts-graded", "dev"))
found["sparse"] = {name: rows.num_rows for name, rows in load_dataset("org/sparse", "test").items()}
try:
    load_dataset("org/sparse", "test", split="bucket_3")
except ValueError as error:
    found["empty"] = str(error)
found["glob"] = load_dataset("org/sparse", data_files="test/*.parquet", split="train").num_rows
tokenizer = AutoTokenizer.from_pretrained("org/model")
model = AutoModelForCausalLM.from_pretrained("org/model")
inputs = tokenizer("<|question|> What is the capital of Arden 0? <|answer|>", return_tensors="pt")
found["ids"] = model.generate(**inputs, do_sample=False, max_new_tokens=4)[0].tolist()
print(json.dumps(found))
"""


@pytest.fixture
def found(hub: HubServer, tiny_dataset: Path, restored_model: Path, tmp_path: Path) -> dict[str, Any]:
    facts = [graded(fact, 4) for fact in tiny_facts(3, split="test")]
    write_mastery_data(tmp_path / "sparse", facts, {"graded_by": "lab", "policy": {"samples": 10}})
    link = {"endpoint": hub.endpoint, "token": "hf_test"}
    data = publish(plan_publication(tiny_dataset, "org/facts-graded", licence="mit"), **link).revision
    publish(plan_publication(tmp_path / "sparse", "org/sparse", licence="mit"), **link)
    publish(plan_publication(restored_model, "org/model", dataset_repo=f"org/facts-graded@{data}", **link), **link)
    environment = {**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_what_was_published_loads_with_one_line(found: dict[str, Any], restored_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sftknow.artifacts.mastery_data import SCHEMA

    rows, columns, ids = found["bucket_3"]
    assert (rows, columns) == (4, SCHEMA.names)
    assert all("/test/" in fact_id for fact_id in ids)
    assert found["dev"] == [f"bucket_{i}" for i in range(5)]
    assert found["sparse"] == {"bucket_4": 3}, "the buckets without a fact keep none from loading"
    assert found["glob"] == 3, "nor do their files, which have no row group"
    assert "bucket_3" in found["empty"]
    assert "bucket_4" in found["empty"], "the message names what there is"
    tokenizer = AutoTokenizer.from_pretrained(restored_model)
    inputs = tokenizer("<|question|> What is the capital of Arden 0? <|answer|>", return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(restored_model)
    assert found["ids"] == model.generate(**inputs, do_sample=False, max_new_tokens=4)[0].tolist()
