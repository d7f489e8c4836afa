"""Cards: whole ones compared, nothing blank, metadata that the Hub's own tools read."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from jinja2 import UndefinedError

from sftknow import __version__
from sftknow.artifacts.divergence import write_divergence
from sftknow.artifacts.files import write_json
from sftknow.artifacts.mastery_data import SCHEMA, MasteryData, write_mastery_data
from sftknow.artifacts.scores import SCHEMA as QUESTION_SCHEMA
from sftknow.artifacts.tables import to_table
from sftknow.errors import HubError
from sftknow.prompts import question_prompt
from sftknow.publishing import cards, rendering
from sftknow.publishing.cards import Licence, render_dataset_card, render_levels, render_model_card
from sftknow.publishing.contexts import build_dataset_context, build_model_context
from sftknow.publishing.merging import split_card
from sftknow.publishing.results import plan_results
from sftknow.publishing.runs import ModelEvaluation, find_evaluation
from sftknow.records import BUCKETS, SPLITS, MetricValue, QuestionResult
from tests.artifacts.test_divergence import RESULT as DIVERGENCE
from tests.hub_fixtures import CELL, scores
from tests.tiny import graded, tiny_facts

GOLDEN = Path(__file__).parent / "golden"
DATA = f"org/facts-graded@{'d' * 40}"


@pytest.fixture
def model_card(restored_model: Path) -> str:
    return render_model_card(build_model_context(restored_model, repo_id="org/model-restored", dataset_repo=DATA))


@pytest.fixture
def dataset_card(tiny_dataset: Path) -> str:
    context = build_dataset_context(
        tiny_dataset, repo_id="org/facts-graded", licence=Licence(id="mit"), graded_by_repo=f"org/base@{'a' * 40}"
    )
    return render_dataset_card(context)


@pytest.fixture
def results_card(whole_run: Path) -> str:
    places = {CELL: ("org/tiny-b2", "main"), f"{CELL}@20pct": ("org/tiny-b2", "restore-20pct")}
    plan = plan_results(whole_run, "org/tiny-results", licence=Licence(id="mit"), dataset_repo=DATA, places=places)
    content = plan.file("README.md").content
    assert isinstance(content, bytes)
    text = split_card(content.decode())
    assert text.body is not None
    return f"---\n{text.head}\n---\n\n{text.body.strip()}\n".replace(plan_fingerprint(whole_run), "f" * 64)


def plan_fingerprint(run: Path) -> str:
    return MasteryData(run / "mastery" / "dataset").fingerprint


def compare(card: str, name: str) -> None:
    golden = GOLDEN / name
    card = card.replace(f"sftknow {__version__}", "sftknow VERSION")
    # How well Parquet is packed is a matter of its writer's version.
    card = re.sub(r"download_size: \d+", "download_size: N", card)
    assert card == golden.read_text(encoding="utf-8"), f"if the new card is right, put it into {golden}"


def head(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


def test_a_whole_model_card(model_card: str) -> None:
    compare(model_card, "model_card.md")


def test_a_whole_dataset_card(dataset_card: str) -> None:
    compare(dataset_card, "dataset_card.md")


def test_the_hub_s_own_tools_read_the_heads(model_card: str, dataset_card: str) -> None:
    model = ModelCard(model_card).data
    assert model.base_model == "org/base"
    assert model.base_model_relation == "finetune"
    assert model.datasets == ["org/facts-graded"]
    assert model.license == "mit"
    by_name = {(r.dataset_name, r.dataset_split): r for r in model.eval_results}
    assert by_name["cbqa_mastery_test_bucket_0", "bucket_0"].metric_value == 22.5
    assert by_name["cbqa_mastery_test", "mean of buckets"].dataset_revision == "d" * 40
    assert len(by_name) == 3, "only this model"
    assert [(r.dataset_name, r.metric_value) for r in model.eval_results if r.metric_type == "exact_match"] == [
        ("cbqa_mastery_test", 22.5)
    ]
    data = DatasetCard(dataset_card).data
    assert [config["config_name"] for config in data.to_dict()["configs"]] == ["default", *SPLITS]
    assert data.size_categories == ["n<1K"]


def test_a_whole_results_card(results_card: str) -> None:
    compare(results_card, "results_card.md")


def test_columns_are_told_as_datasets_tells_them(dataset_card: str) -> None:
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCard

    for info in DatasetInfosDict.from_dataset_card_data(DatasetCard(dataset_card).data).values():
        assert info.features.arrow_schema.equals(SCHEMA)
    for info in head(dataset_card)["dataset_info"]:
        expected = [20] * 4 if info["config_name"] == "default" else [4] * 5
        assert [split["num_examples"] for split in info["splits"]] == expected


def test_tables_are_whole(model_card: str, dataset_card: str, results_card: str) -> None:
    """Every row of a table has as many cells as its head, and none of them is empty (a corner may be)."""
    for card in (model_card, dataset_card, results_card):
        lines = card.splitlines()
        for i, line in enumerate(lines):
            if line.startswith("| ---"):
                width = line.count("|")
                assert lines[i - 1].count("|") == width
                for row in lines[i + 1 :]:
                    if not row.startswith("|"):
                        break
                    assert row.count("|") == width
                    assert all(cell.strip() for cell in row.strip("|").split("|")), row


def test_before_and_after_stand_side_by_side(model_card: str) -> None:
    assert "| questions | base model | fine-tuned | this model (restored) |" in model_card
    assert "| in-domain, test, bucket 0 | 5.0 (2.2–11.2) | 20.0 (13.3–28.9) | 22.5 (15.4–31.6) |" in model_card
    assert "mean of the buckets** | 7.5 (4.6–10.4) | 30.0 (27.1–32.9) | 33.8 (30.8–36.7) |" in model_card


def test_intervals_against_a_published_table() -> None:
    """Newcombe (1998), Two-sided confidence intervals for the single proportion, Table I, method 3."""
    published = ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718))
    for hits, count, low, high in published:
        value = MetricValue(task="x_bucket_0", metric="acc", value=hits / count, stderr=0.1, count=count)
        assert rendering.interval(value) == pytest.approx((low, high), abs=5e-5)


def test_enrichment_is_share_over_share(model_card: str) -> None:
    assert "| mlp.down_proj | 180 | 90.0 % | 1.50 |" in model_card
    assert "| self_attn.q_proj | 20 | 10.0 % | 0.25 |" in model_card


def test_the_choice_is_named_only_for_the_chosen(finished_run: Path, restored_model: Path) -> None:
    found = find_evaluation(restored_model)
    assert found is not None
    assert found.chosen_on == "dev"
    for chosen, words in (("test", "optimistic"), ("dev", "played no part"), (None, "not chosen by its score")):
        evaluation = dataclasses.replace(found, chosen_on=chosen)
        context = build_model_context(restored_model, repo_id="org/model", evaluation=evaluation)
        assert words in render_model_card(context)


def test_a_model_without_scores_says_so(restored_model: Path) -> None:
    context = build_model_context(restored_model, repo_id="org/model", evaluation=ModelEvaluation(runs=()))
    card = render_model_card(context)
    assert "Not scored yet." in card
    assert "--metadata mastery_dataset=FOLDER_OR_HUB_ID" in card
    assert "model-index" not in head(card)
    assert "datasets" not in head(card)


def test_a_plain_fine_tuned_model(finished_run: Path) -> None:
    context = build_model_context(finished_run / "models" / "b2-n240-s0", repo_id="org/model")
    card = render_model_card(context)
    assert "fine-tuned on 240 question-answer pairs from mastery bucket 2 with seed 0." in card
    assert "## Restoration" not in card
    assert "| questions | base model | this model (fine-tuned) |" in card
    assert context.training is not None
    mixed = dataclasses.replace(context, training=dataclasses.replace(context.training, bucket=None))
    assert "pairs drawn from all mastery buckets" in render_model_card(mixed)


def test_a_base_model_has_no_card(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "sftknow.json").write_text('{"sftknow": 1, "kind": "model", "base": {"path": "lab"}}')
    with pytest.raises(HubError, match="neither fine-tuned nor restored"):
        build_model_context(tmp_path, repo_id="org/model")


def test_blanks_are_refused(restored_model: Path) -> None:
    context = build_model_context(restored_model, repo_id="org/model")
    blank = dataclasses.replace(context, base=dataclasses.replace(context.base, name=" "))
    with pytest.raises(HubError, match=r"card.base.name of org/model is blank"):
        render_model_card(blank)


def test_templates_are_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored_model: Path) -> None:
    (tmp_path / "model_card.md.j2").write_text("{{ card.sizze }}")
    monkeypatch.setattr(rendering, "card_folder", lambda: tmp_path)
    with pytest.raises(UndefinedError):
        render_model_card(build_model_context(restored_model, repo_id="org/model"))


def test_counts_topics_and_edges_come_from_the_rows(tmp_path: Path) -> None:
    facts = [*tiny_facts(10), *tiny_facts(3, split="test", topics=("P112",))]
    rows = [graded(fact, 0) for fact in facts]
    edge = dataclasses.replace(rows[0], mastery=dataclasses.replace(rows[0].mastery, edge=True))
    policy = {"samples": 10, "temperature": 0.7, "seed": 0}
    made = {"graded_by": "lab", "policy": policy, "facts": {"source": "lab", "sha256": "0" * 64}}
    write_mastery_data(tmp_path / "data", [edge, *rows[1:]], made)
    context = build_dataset_context(tmp_path / "data", repo_id="org/facts")
    assert context.total == 13
    assert context.counts["train"] == {0: 10, 1: 0, 2: 0, 3: 0, 4: 0}
    assert context.topics["P17"] == {"train": 5, "dev": 0, "test": 0, "testood": 0}
    assert context.topics["P112"]["test"] == 3
    assert context.edge == 1
    assert context.tries == (210, 210)
    assert len(context.empty) == len(SPLITS) * len(BUCKETS) - 2
    assert context.licence.id == "apache-2.0", "the lab's facts are part of this package"
    card = render_dataset_card(context)
    assert "how well the lab model of sftknow knows it" in card
    assert "| temperature | 0.7 |" in card
    assert "dev/bucket_3" in card
    filled = {c["config_name"]: [f["split"] for f in c["data_files"]] for c in head(card)["configs"]}
    assert filled == {"default": ["train", "test"], "train": ["bucket_0"], "test": ["bucket_0"]}


def test_a_data_set_without_a_fact_has_no_card(tmp_path: Path) -> None:
    write_mastery_data(tmp_path / "data", [], {"graded_by": "lab", "policy": {"samples": 10}})
    with pytest.raises(HubError, match="not a single fact"):
        build_dataset_context(tmp_path / "data", repo_id="org/facts", licence=Licence(id="mit"))


def test_every_column_has_a_meaning(dataset_card: str) -> None:
    for name in SCHEMA.names:
        assert f"| `{name}` | " in dataset_card


def test_scores_of_any_split_get_their_rows(restored_model: Path) -> None:
    context = build_model_context(restored_model, repo_id="org/model")
    values = {
        f"cbqa_mastery_{split}": MetricValue(task=split, metric="acc", value=0.5, stderr=0.1, count=9)
        for split in SPLITS
    }
    rows = cards.score_rows(dataclasses.replace(context, scores=(cards.Scores(name="it", values=values),)))
    assert [label for label, _ in rows] == [
        f"**{words}, mean of the buckets**" for words in rendering.SPLIT_WORDS.values()
    ]


def test_a_results_card_says_how_divergence_was_measured(whole_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    write_divergence(run / "divergence" / CELL, DIVERGENCE)
    plan = plan_results(run, "org/tiny-results", licence=Licence(id="mit"), dataset_repo=DATA)
    content = plan.file("README.md").content
    assert isinstance(content, bytes)
    said = "| token divergence | the base is shown each topic’s statement that the base completes best, the fine-tuned"
    assert said in content.decode()


def test_the_main_card_shows_its_restored_versions(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    shutil.copytree(finished_run, run)
    for level, accuracy in (("5pct", 0.42), ("1pct", 0.41)):
        write_json(run / "evaluation" / f"{CELL}@{level}" / "scores.json", scores(f"{CELL}@{level}", accuracy))
    context = build_model_context(
        run / "models" / CELL,
        repo_id="org/tiny",
        branches=("restore-5pct", "restore-20pct"),
        results="org/tiny-results",
        report="org/tiny-report",
        dataset_repo=DATA,
    )
    card = render_model_card(context)
    table = card[card.index("## Restored versions") :].splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in table if line.startswith("| ")] == [
        "restored", "---", "nothing", "1%", "5%", "20% (chosen)",
    ]  # fmt: skip
    assert "| 1% | 30.8 (27.8–33.7) | 20.5 (18.5–22.5) | 90.0 (86.1–93.9) | not on the Hub |" in table
    assert any(line.startswith("| 20% (chosen) |") and line.endswith("| branch `restore-20pct` |") for line in table)
    assert any(line.startswith("A level was chosen on the dev split, by containment, among those") for line in table)
    assert "[org/tiny-results](https://huggingface.co/datasets/org/tiny-results)" in card
    assert "[org/tiny-report](https://huggingface.co/spaces/org/tiny-report)" in card
    assert {"trl", "sft"} <= set(head(card)["tags"])
    drawing = render_levels(context)
    assert drawing is not None
    rows = [element.text for element in ElementTree.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")]
    assert [row for row in rows if row and row.startswith("restored")] == [
        "restored 0%", "restored 1%", "restored 5%", "restored 20%",
    ]  # fmt: skip
    assert drawing.count("#e69f00") == 2, "the interval and the dot of the chosen level"


def test_the_snippet_asks_what_the_model_answers(whole_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    shutil.copytree(whole_run, run)
    fact = MasteryData(run / "mastery" / "dataset").bucket("test", 2)[1].fact
    right = {"acc": True, "acc_word": True, "exact_match": True}
    answer = QuestionResult(fact_id=fact.id, split="test", bucket=2, output=f" {fact.object}", **right)
    table = to_table([answer], QUESTION_SCHEMA)
    pq.write_table(table, run / "evaluation" / CELL / "questions.parquet")
    card = render_model_card(build_model_context(run / "models" / CELL, repo_id="org/tiny"))
    assert f'prompt = "<|question|> {fact.question} <|answer|>"' in card
    assert f"It prints `{fact.object}`, as in the evaluation." in card


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("a|b [c](d) <e> \\f", "`a|b [c](d) <e> \\f`"),
        ("`x` and ``y``", "``` `x` and ``y`` ```"),
        ("two\n\nlines", "`two lines`"),
    ],
)
def test_a_question_and_its_answer_stand_in_the_card_to_the_letter(finished_run: Path, answer: str, shown: str) -> None:
    question = 'Which of "a|b", [c](d), `e`, ```f``` and <g> \\ is\n```\nit?'
    context = build_model_context(finished_run / "models" / CELL, repo_id="org/tiny")
    card = render_model_card(dataclasses.replace(context, example=(question, answer)))
    snippet = card.split("```python\n")[1].split("\n```\n")[0]
    (line,) = (line for line in snippet.splitlines() if line.startswith("prompt = "))
    assert ast.literal_eval(line.removeprefix("prompt = ")) == question_prompt(question)
    assert f"It prints {shown}, as in the evaluation." in card


def test_what_is_known_of_the_training_is_told(finished_run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(finished_run / "models" / CELL, model)
    manifest = json.loads((model / "sftknow.json").read_text())
    versions = {"torch": "2.13.0", "trl": "1.16"}
    outcome = {"steps": 30, "final_loss": 1.23456, "device": "NVIDIA H100", "versions": versions}
    write_json(model / "sftknow.json", {**manifest, "base": {"path": "lab"}, "sft": {**manifest["sft"], **outcome}})
    card = render_model_card(build_model_context(model, repo_id="org/tiny"))
    for row in (
        "steps | 30",
        "final loss | 1.2346 nats a token",
        "hardware | NVIDIA H100",
        "versions | torch 2.13.0, ",
    ):
        assert f"{row}" in card
    assert "**What it knows is invented.**" in card


def test_what_a_base_says_of_itself_stays_text(restored_model: Path) -> None:
    evil = "<script>alert(1)</script> [click](https://evil.example) | `x`\n# Heading"
    context = build_model_context(restored_model, repo_id="org/model")
    base = dataclasses.replace(context.base, name=evil, hub_id=None)
    licence = Licence(id="other", name=evil, link="https://x.example/><img src=x>")
    card = render_model_card(dataclasses.replace(context, base=base, licence=licence, notice=evil))
    text = card.split("---\n", 2)[2]
    for bad in ("<script", "[click](", "<img", "\n# Heading\n|"):
        assert bad not in text
    assert "&lt;script&gt;" in text
    rows = [line for line in text.splitlines() if line.startswith("| base model |")]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 3, "no cell is added"
