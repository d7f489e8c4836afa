"""The real clients, in a process of their own with an empty cache: every card's own snippet on what was published."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sftknow.artifacts.mastery_data import SCHEMA, write_mastery_data
from sftknow.publishing.cards import Licence
from sftknow.publishing.publish import plan_publication, publish
from sftknow.run.publishing import RunOptions, publish_run
from tests.hub_fixtures import CELL
from tests.hub_server import HubServer
from tests.tiny import graded, tiny_facts

SCRIPT = """
import json, re, sys
from pathlib import Path
from datasets import get_dataset_config_names, load_dataset

def run(card):
    names = {}
    for code in re.findall("```python\\n(.*?)```", card, re.DOTALL):
        exec(code, names)
    return names

found = {}
for place in sorted(Path(sys.argv[1]).iterdir()):
    names = run(place.read_text())
    found[place.name] = told = {}
    for kind in ("facts", "scores"):
        if kind in names:
            told["rows"], told["columns"] = names[kind].num_rows, names[kind].column_names
            told["first"] = names[kind][0]
    if "model" in names:
        told["ids"] = names["model"].generate(**names["inputs"], do_sample=False, max_new_tokens=4)[0].tolist()
for name in ("org/tiny-graded", "org/sparse", "org/tiny-results"):
    configs = {config: load_dataset(name, config) for config in get_dataset_config_names(name)}
    found[name] = {c: {split: rows.num_rows for split, rows in splits.items()} for c, splits in configs.items()}
try:
    load_dataset("org/sparse", "test", split="bucket_3")
except ValueError as error:
    found["empty"] = str(error)
found["glob"] = load_dataset("org/sparse", data_files="test/*.parquet", split="train").num_rows
print(json.dumps(found))
"""


def run_snippets(hub: HubServer, folder: Path) -> dict[str, Any]:
    """Run the snippets of every card on the Hub, those of branches too; what they loaded, by repository and branch."""
    (folder / "cards").mkdir()
    for (kind, name), repo in hub.repos.items():
        for branch in repo.branches:
            place = folder / "cards" / f"{name.partition('/')[2]}@{branch}"
            place.write_bytes(hub.read(kind, name, "README.md", branch))
    environment = {**os.environ, **hub.environment(folder / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder / "cards")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def found(hub: HubServer, whole_run: Path, tmp_path: Path) -> dict[str, Any]:
    facts = [graded(fact, 4) for fact in tiny_facts(3, split="test")]
    write_mastery_data(tmp_path / "sparse", facts, {"graded_by": "lab", "policy": {"samples": 10}})
    link = {"endpoint": hub.endpoint, "token": "hf_test"}
    publish(plan_publication(tmp_path / "sparse", "org/sparse", licence="mit"), **link)
    publish_run(whole_run, RunOptions(to="org", data_licence=Licence(id="mit")), **link)
    return run_snippets(hub, tmp_path)


def test_everything_that_was_published_loads_by_the_snippet_of_its_card(found: dict[str, Any], whole_run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    graded_facts, scores = found["tiny-graded@main"], found["tiny-results@main"]
    assert (graded_facts["rows"], graded_facts["columns"]) == (4, SCHEMA.names)
    assert (graded_facts["first"]["split"], graded_facts["first"]["bucket"]) == ("test", 3)
    assert found["sparse@main"]["rows"] == 3, "the snippet names a bucket that has facts"
    tables = sorted((whole_run / "evaluation").glob("*/scores.json"))
    assert scores["rows"] == sum(len(json.loads(table.read_text())["metrics"]) for table in tables) > 0
    assert {"model", "task", "metric", "value"} <= set(scores["columns"])
    places = {"main": whole_run / "models" / CELL, "restore-20pct": whole_run / "restored" / CELL / "20pct"}
    for branch, folder in places.items():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        inputs = tokenizer("<|question|> What is the capital of Norway? <|answer|>", return_tensors="pt")
        model = AutoModelForCausalLM.from_pretrained(folder)
        wanted = model.generate(**inputs, do_sample=False, max_new_tokens=4)[0].tolist()
        assert found[f"tiny-{CELL}@{branch}"]["ids"] == wanted


def test_every_configuration_loads(found: dict[str, Any], whole_run: Path) -> None:
    whole = found["org/tiny-graded"].pop("default")
    assert whole == {split: sum(buckets.values()) for split, buckets in found["org/tiny-graded"].items()}
    for split, buckets in found["org/tiny-graded"].items():
        files = {f"bucket_{i}": whole_run / "mastery" / "dataset" / split / f"bucket_{i}.parquet" for i in range(5)}
        assert buckets == {name: pq.read_metadata(file).num_rows for name, file in files.items()}
    assert found["org/sparse"] == {"default": {"test": 3}, "test": {"bucket_4": 3}}, (
        "the buckets without a fact keep none from loading"
    )
    assert found["glob"] == 3, "nor do their files, which have no row group"
    assert "bucket_3" in found["empty"]
    assert "bucket_4" in found["empty"], "the message names what there is"
    assert found["org/tiny-results"] == {"scores": {"full": found["tiny-results@main"]["rows"]}}
