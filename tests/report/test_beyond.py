"""What stands beside the grid: strategies, other tasks, layers, training facts, examples, advice, claims, caching."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from sftknow.report import accuracy, by_fact, mastery, pairs, restoration
from sftknow.report.advice import advice
from sftknow.report.claims import judge
from sftknow.report.collect import collect
from sftknow.report.compose import write_report
from sftknow.report.contents import BASE, Model
from sftknow.report.findings import findings
from sftknow.report.mastery import bucket_of
from sftknow.stats import holm
from tests.report.simulated import Drawn, Truth, simulated_report
from tests.report.synthetic import synthetic_run


def line(table: dict[str, Any], row: str) -> dict[str, Any]:
    """A row by its first entry: column → entry."""
    found = next(r for r in table["rows"] if r[0]["text"] == row)
    return dict(zip(table["columns"], found, strict=True))


def test_every_table_of_the_paper_is_there(rich_results: Any) -> None:
    for number in (1, 2, 3, "4a", "4b", 5, 6, 7, 8, 9, 10, 11):
        assert any(name.startswith(f"table-{number}-") for name in rich_results["tables"]), number
    assert rich_results["unasked"] == []


def test_what_was_not_asked_for_is_said(results: Any, page: Path) -> None:
    assert len(results["unasked"]) == 6
    assert "grid.lora: true" in page.read_text()


def test_strategies(rich_results: Any, rich: Path) -> None:
    table = rich_results["tables"]["table-7-strategies"]
    assert [row[0]["text"] for row in table["rows"]] == [
        "Base model", "instruct", "SFT (mixed)", "SFT (divided)", "LoRA", "Parameter restoration",
        "The same models unrestored",
    ]  # fmt: skip
    # Picked on dev, told on test.
    dev = {n: json.loads((rich / "evaluation" / f"mixed-n{n}-s0" / "scores.json").read_text()) for n in (60, 240)}
    best = max(dev, key=lambda n: next(
        m["value"] for m in dev[n]["metrics"] if (m["task"], m["metric"]) == ("cbqa_mastery_dev", "acc")
    ))  # fmt: skip
    assert line(table, "SFT (mixed)")["The one taken"]["text"] == f"all buckets mixed, {best} facts"
    assert line(table, "SFT (mixed)")["In-domain test (%)"]["paper"] == 58.67
    assert "1,920 facts" in line(table, "SFT (divided)")["The one taken"]["text"]
    assert line(table, "instruct")["The one taken"]["text"] == "as it is, in the prompt of fine-tuning"
    # The restored ones stand beside the same seeds as they were trained, of two or more seeds that there are.
    taken, plain = line(table, "Parameter restoration"), line(table, "The same models unrestored")
    assert taken["The one taken"]["text"].startswith(plain["The one taken"]["text"])
    group = plain["The one taken"]["text"].replace("bucket ", "b").replace(" facts", "").replace(",", "").split()
    made = rich.glob(f"evaluation/{group[0]}-n{group[1]}-s*@20pct/scores.json")
    seeds = [path.parent.name.partition("@")[0] for path in made]
    scores = [json.loads((rich / "evaluation" / name / "scores.json").read_text()) for name in seeds]
    assert plain["Seeds"]["value"] == taken["Seeds"]["value"] == len(seeds)
    mean = sum(
        m["value"] for s in scores for m in s["metrics"] if (m["task"], m["metric"]) == ("cbqa_mastery_test", "acc")
    ) / len(seeds)  # fmt: skip
    assert plain["In-domain test (%)"]["value"] == pytest.approx(100 * mean)


def test_other_tasks_layers_and_training_facts(rich_results: Any) -> None:
    tables = rich_results["tables"]
    five = line(tables["table-5-other-tasks"], "5%")
    assert five["XSum: ROUGE-1 (%)"]["value"] == pytest.approx(44.0)
    assert five["XSum: ROUGE-1 (%)"]["paper"] == 42.36
    eleven = tables["table-11-layer-ranges"]
    assert eleven["columns"][1:] == [f"Restored layers: {r} (%)" for r in ("none", "0-1", "2-3")]
    six = line(tables["table-6-restoration-train"], "5%")
    assert six["Trained on: bucket 0, 240 facts (%)"]["difference"] == pytest.approx(25.0)
    assert six["Trained on: bucket 0, 240 facts (%)"]["paper"] == 12.5
    for name in ("table-4a-restoration-test", "table-o-choices"):
        assert not any("layers" in row[0]["text"] for row in tables[name]["rows"]), "a range is no level"


def test_the_papers_value_stands_beside(rich_results: Any, rich: Path, tmp_path: Path) -> None:
    two = line(rich_results["tables"]["table-2-accuracy"], "bucket 0")
    assert two["In-domain test: Mean (%)"]["paper"] == 45.47
    assert "difference from paper" not in two["In-domain test: Mean (%)"]
    copy = Path(shutil.copytree(rich, tmp_path / "copy"))
    (copy / "provenance.json").write_text(json.dumps({"base": {"name": "meta-llama/Meta-Llama-3-8B"}}))
    report = collect(copy)
    made = (accuracy.accuracy(report), mastery.distribution(report), restoration.restoration(report, "testood"))
    shown = {t.id: t.json() for t in made if t is not None}
    here = line(shown["table-2-accuracy"], "bucket 0")["In-domain test: Mean (%)"]
    assert here["difference from paper"] == pytest.approx(here["value"] - 45.47)
    restored = line(shown["table-4b-restoration-testood"], "5%")["Trained on: bucket 4, 1,920 facts (%)"]
    assert restored["paper"] == 53.77
    assert "difference from paper" in restored
    count = line(shown["table-1-distribution"], "training")["Bucket 0 (facts)"]
    assert count["difference from paper"] == count["value"] - 18456


def test_examples_are_what_the_models_said(rich_results: Any, rich: Path) -> None:
    rows = rich_results["tables"]["table-l-gained-lost"]["rows"]
    ways = Counter(row[1]["text"] for row in rows)
    assert ways["gained"] == 12
    right = {"gained": ("Belmora", "Arden"), "lost": ("Arden", "Belmora")}
    for row in rows:
        assert (row[5]["text"], row[6]["text"]) == right[row[1]["text"]]
        assert row[3]["text"] == "Which country?"
        assert row[4]["text"] == "Arden"


def test_the_word_follows_the_made_up_truth(rich: Path) -> None:
    judged = {j.id: j.verdict for j in judge(collect(rich))}
    words = {id: verdict.word for id, verdict in judged.items()}
    assert words["phenomenon-2"] == "holds"  # bucket 0 drifts away with data, bucket 2 not at all
    assert words["token-finding-1"] == "does not hold"  # the made-up divergence only grows
    # Nine trainings, means over seeds; SciPy's coefficient.
    divergence, known = [], []
    for group in (f"b{b}-n{n}" for b in (0, 2, 4) for n in (60, 240, 1920)):
        found = [json.loads(p.read_text())["mean"] for p in rich.glob(f"divergence/{group}-s*/divergence.json")]
        tables = [pq.read_table(p).to_pandas() for p in rich.glob(f"evaluation/{group}-s?/questions.parquet")]
        divergence.append(np.mean(found))
        known.append(np.mean([t[(t["split"] == "test") & (t["bucket"] == 4)]["acc"].mean() for t in tables]))
    effect = judged["token-finding-2"].effects[0]
    assert (effect.value, effect.seeds) == (pytest.approx(spearmanr(divergence, known).statistic), 9)


def test_a_single_draw_gives_no_word(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "one", buckets=(0, 2), sizes=(60, 240, 1920), per_bucket=40)
    judged = {j.id: j.verdict for j in judge(collect(run))}
    for id in ("phenomenon-1", "phenomenon-2", "token-finding-1", "parameter-finding-2"):
        assert judged[id].word == "cannot be told"
    assert "draw" in judged["phenomenon-2"].why


def test_advice(rich_results: Any, results: Any) -> None:
    starts = [sentence.partition(":")[0] for sentence in rich_results["advice"]]
    assert [start for start in starts if start != "Whether to fine-tune at all"] == [
        "How much data", "From which bucket", "Which level to restore", "How sure",
    ]  # fmt: skip
    assert "3 training draws" in rich_results["advice"][-1]
    assert "surely better" in rich_results["advice"][starts.index("Which level to restore")]
    assert "2 training draws" in results["advice"][-1]


def test_the_advice_on_buckets_does_not_contradict_the_test_set() -> None:
    """Where dev cannot tell buckets apart and the test set surely can, the one behind is not said to do as well."""
    drawn = simulated_report(Truth(seeds=5, unknown=-0.6), 0)
    cells = {name: cell for name, cell in drawn.cells.items() if cell.size == 240}
    base = drawn.models[BASE]
    same = {key: score for key, score in base.scores.items() if key[0] == "dev"}

    def blind_on_dev(model: Model) -> Model:
        assert model.questions is not None
        answers = {s: (base if s == "dev" else model).questions.split(s) for s in ("dev", "test", "testood")}  # type: ignore[union-attr]
        return replace(model, scores={**model.scores, **same}, questions=Drawn({k: v for k, v in answers.items() if v}))

    report = replace(drawn, cells=cells, models={name: blind_on_dev(m) for name, m in drawn.models.items()})
    said = next(line for line in advice(report, findings(report)) if line.startswith("From which bucket"))
    assert "bucket 1, bucket 2, bucket 3 and bucket 4 do equally well as far as this run can tell" in said
    assert "; bucket 0 is surely worse" in said
    alike = next(line for line in advice(drawn, findings(drawn)) if line.startswith("From which bucket"))
    assert "bucket 0" in alike.partition(" do equally well")[0], "with 60 facts nothing is behind"


def test_no_advice_without_models(rich: Path, tmp_path: Path) -> None:
    shutil.copytree(rich / "mastery", tmp_path / "run" / "mastery")
    page = write_report(tmp_path / "run", tmp_path / "out")
    assert json.loads((page.parent / "results.json").read_text())["advice"] == []
    assert 'id="advice"' not in page.read_text()


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_buckets_of_rates() -> None:
    assert [bucket_of(r) for r in (0.0, 1e-9, 0.25, 0.2500001, 0.5, 0.75, 0.76, 1.0)] == [0, 1, 1, 2, 2, 3, 4, 4]


def test_every_file_of_answers_is_read_once(rich: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[Path] = Counter()
    original = pq.read_table

    def counted(path: Path, **options: Any) -> Any:
        read[Path(path)] += 1
        return original(path, **options)

    monkeypatch.setattr(by_fact.pq, "read_table", counted)
    report = collect(rich)
    for split in ("test", "testood", "dev"):
        restoration.restoration(report, split)
    for make in (pairs.tests, pairs.gained_and_lost, mastery.edges, judge):
        make(report)
    advice(report, findings(report))
    files = [path for path in read if path.name == "questions.parquet"]
    assert len(files) > 40
    assert {read[path] for path in files} == {1}


def test_pairs_are_those_of_a_plain_loop(rich: Path) -> None:
    report = collect(rich)
    first, second = (report.models[n].questions for n in ("b0-n240-s0", "b4-n240-s1"))
    assert first is not None
    assert second is not None
    shared = by_fact.shared_outcomes([first], [second], "testood")
    assert shared is not None
    tables = [
        {r["fact_id"]: r for r in pq.read_table(q.path).to_pylist() if r["split"] == "testood"} for q in (first, second)
    ]
    assert set(shared.fact_ids) == set(tables[0]) & set(tables[1])
    for fact_id, bucket, one, two in zip(shared.fact_ids, shared.buckets, shared.first, shared.second, strict=True):
        assert (tables[0][fact_id]["bucket"], tables[0][fact_id]["acc"], tables[1][fact_id]["acc"]) == (
            bucket,
            one,
            two,
        )


def test_questions_that_only_one_has_are_left_out(rich: Path, tmp_path: Path) -> None:
    path = rich / "evaluation" / "base" / "questions.parquet"
    table = pq.read_table(path)
    keep = np.random.default_rng(0).random(table.num_rows) < 0.5
    pq.write_table(table.filter(keep), tmp_path / "half.parquet")
    half, whole = by_fact.Questions(tmp_path / "half.parquet"), by_fact.Questions(path)
    for pair in ([half], [whole]), ([whole], [half]):
        shared = by_fact.shared_outcomes(*pair, "test")
        assert shared is not None
        np.testing.assert_array_equal(shared.first, shared.second)
        assert shared.fact_ids.size == half.split("test").fact_ids.size  # type: ignore[union-attr]
    assert by_fact.shared_outcomes([half], [whole, None], "test") is None
