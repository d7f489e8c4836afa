"""ROUGE by hand, and the task ``sftknow_xsum`` under lm-eval's own command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from sftknow.evaluation.general.runner import GeneralHarness
from sftknow.evaluation.general.tasks import find_task
from sftknow.evaluation.general.xsum import ArticlesError, load_articles, rouge
from sftknow.models.loading import load_model, load_tokenizer
from sftknow.records import ModelRef
from sftknow.resources import task_folder
from tests.evaluation.general.stand_in import write_stand_in
from tests.tiny import tiny_llama, tiny_tokenizer


def test_rouge_by_hand() -> None:
    # Five of six words, two of five pairs (the cat, on the), longest common subsequence "the cat on the mat".
    scores = rouge("the cat sat on the mat", "the cat was on the mat")
    assert scores == pytest.approx({"rouge1": 5 / 6, "rouge2": 3 / 5, "rougeL": 5 / 6})
    # Precision 2/3, recall 2/4.
    assert rouge("a b c", "b c d e")["rouge1"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    # Order does not matter to ROUGE-1, but to the others.
    assert rouge("b a", "a b") == pytest.approx({"rouge1": 1.0, "rouge2": 0.0, "rougeL": 0.5})
    # Words are stemmed, case and punctuation do not count.
    assert rouge("Closing roads!", "close road")["rougeL"] == 1.0
    assert set(rouge("", "a b").values()) == {0.0}
    assert set(rouge("same words here", " same words here ").values()) == {1.0}


def test_articles_are_cut_by_words_and_on_one_line(tmp_path: Path) -> None:
    folder = write_stand_in(tmp_path / "data") / "xsum"
    rows = load_articles(xsum_data=str(folder), article_words=4, pretrained="ignored")["test"]
    assert rows[0]["document"] == "The road from Eskaby"
    assert "\n" not in load_articles(xsum_data=str(folder))["test"][0]["document"]


def test_yaml_gives_the_harness_numbers(tmp_path: Path) -> None:
    """What the command does, without its search through thousands of other tasks."""
    folder = write_stand_in(tmp_path / "data") / "xsum"
    ref = ModelRef(path=str(tiny_llama(tmp_path / "model", tiny_tokenizer())))
    metadata = {"xsum_data": str(folder), "pretrained": ref.path}
    manager = TaskManager(include_path=str(task_folder()), include_defaults=False, metadata=metadata)
    lm = HFLM(pretrained=load_model(ref), tokenizer=load_tokenizer(ref), batch_size=4)
    theirs = simple_evaluate(lm, tasks=["sftknow_xsum"], task_manager=manager)
    ours = GeneralHarness(find_task("xsum"), folder).score(load_model(ref), load_tokenizer(ref), name="m")
    for metric in ours.metrics:
        assert metric.value == theirs["results"]["sftknow_xsum"][metric.lm_eval_name]
    assert [a.output for a in ours.answers] == [s["resps"][0][0] for s in theirs["samples"]["sftknow_xsum"]]
    task = manager.load(["sftknow_xsum"])["tasks"]["sftknow_xsum"]
    assert task.config.generation_kwargs == {
        "do_sample": False, "temperature": 0.0, "max_gen_toks": 64, "until": ["\n"]
    }  # fmt: skip
    document = task.eval_docs[0]
    assert task.fewshot_context(document, num_fewshot=0) == f"Article: {document['document']}\nSummary:"


@pytest.mark.slow
def test_command_gives_the_harness_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lm_eval
    from lm_eval.__main__ import cli_evaluate

    folder = write_stand_in(tmp_path / "data") / "xsum"
    model = tiny_llama(tmp_path / "model", tiny_tokenizer())
    command = ["lm_eval", "--model", "hf", "--model_args", f"pretrained={model}", "--tasks", "sftknow_xsum"]
    command += ["--metadata", json.dumps({"xsum_data": str(folder)}), "--batch_size", "6"]
    if not list((Path(lm_eval.__file__).parent / "tasks").glob("**/sftknow_xsum.yaml")):
        command += ["--include_path", str(task_folder())]
    monkeypatch.setattr(sys, "argv", command)
    cli_evaluate()
    rows = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    found = {row[5]: (float(row[7]), float(row[9])) for row in rows if len(row) > 10 and row[5].startswith("rouge")}
    ref = ModelRef(path=str(model))
    ours = GeneralHarness(find_task("xsum"), folder).score(load_model(ref), load_tokenizer(ref), name="m")
    assert found == {m.name: (round(m.value, 4), round(m.stderr, 4)) for m in ours.metrics}


def test_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    for folder, said in ((tmp_path / "none", "there is no folder"), (tmp_path, "no file of the split test")):
        with pytest.raises(ArticlesError, match=said) as caught:
            load_articles(xsum_data=str(folder))
        assert str(caught.value.code).startswith("sftknow_xsum: xsum: ")
    with pytest.raises(ArticlesError, match="pass --data xsum=FOLDER"):
        load_articles()
