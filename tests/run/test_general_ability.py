"""Table 5 whole: fine-tuned on a stand-in, restored, scored, resumed; and the commands around it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sftknow.artifacts.general_scores import read_general
from sftknow.cli.main import main
from tests.evaluation.general.stand_in import write_stand_in, xsum_rows
from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` (a random Llama with a context of 512) and ``data``."""
    folder = tmp_path_factory.mktemp("ability")
    write_stand_in(folder / "data", train=24, test=4)
    tokenizer = tiny_tokenizer([text for row in xsum_rows(16) for text in row.values()])
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
                         bos_token_id=0, eos_token_id=1, pad_token_id=2, tie_word_embeddings=False)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return folder


def test_the_whole_table(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table5"
    data = f"xsum={place / 'data' / 'xsum'}"
    command = ["ability", str(place / "base"), "--tasks", "xsum", "--data", data, "--size", "16", "--set",
               "learning_rate=3e-3", "--top", "5%,60%", "--device", "cpu", "--out", str(out)]  # fmt: skip
    assert main(command) == 0
    text = capsys.readouterr().out
    assert [line.split("  ")[0] for line in text.splitlines()[2:6]] == ["base model", "fine-tuned", "5%", "60%"]
    results = json.loads((out / "general_ability.json").read_text())
    table = results["tasks"]["xsum"]
    assert [row["level"] for row in table["rows"]] == ["base", "0%", "5%", "60%"]
    assert [m["name"] for m in table["rows"][0]["metrics"]] == ["rouge1", "rouge2", "rougeL"]
    assert (table["trained_on"], table["few_shot"], table["headline"]) == (16, 0, "rouge1")
    assert table["rows"][1]["restored"] == 0
    assert 0 < table["rows"][2]["restored"] < table["rows"][3]["restored"]
    for row, name in zip(table["rows"], ("base", "0pct", "5pct", "60pct"), strict=True):
        scores = read_general(out / "xsum" / "scores" / name / "xsum.json")
        assert [m["value"] for m in row["metrics"]] == [m.value for m in scores.metrics]
    assert list((out / "xsum" / "restored").iterdir()) == [], "restored checkpoints are deleted once scored"
    outputs = {n: [a.output for a in read_general(out / "xsum" / "scores" / n / "xsum.json").answers]
               for n in ("base", "0pct", "60pct")}  # fmt: skip
    assert outputs["base"] != outputs["0pct"] != outputs["60pct"]
    # A second start finds everything done; another level is added to what is there.
    files = {path: path.stat().st_mtime_ns for path in (out / "xsum").rglob("*") if path.is_file()}
    assert main(command) == 0
    assert capsys.readouterr().err == ""
    assert {path: path.stat().st_mtime_ns for path in (out / "xsum").rglob("*") if path.is_file()} == files


def test_fine_tune_then_evaluate(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = f"xsum={place / 'data' / 'xsum'}"
    tuned, scores = tmp_path / "tuned", tmp_path / "scores"
    assert main(["sft", "--model", str(place / "base"), "--task", "xsum", "--data", data, "--size", "8",
                 "--article-words", "5", "--out", str(tuned)]) == 0  # fmt: skip
    manifest = json.loads((tuned / "sftknow.json").read_text())
    assert manifest["task"]["article_words"] == 5
    assert len(manifest["sft"]["rows"]) == 8
    capsys.readouterr()
    assert main(["evaluate", str(tuned), "--tasks", "xsum", "--data", data, "--article-words", "5", "--limit", "3",
                 "--device", "cpu", "--out", str(scores)]) == 0  # fmt: skip
    text = capsys.readouterr().out
    assert text.splitlines()[2].startswith("xsum rouge1")
    found = read_general(scores / "xsum.json")
    assert [answer.row for answer in found.answers] == [0, 1, 2]
    assert found.answers[0].prompt == "Article: The road from Eskaby was\nSummary:"


def test_refused_in_one_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, data, out = str(place / "base"), place / "data", str(tmp_path / "out")
    train = ["sft", "--model", base, "--size", "4", "--out", out]
    score = ["evaluate", base, "--device", "cpu", "--tasks"]
    for command, said in (
        ([*score, "xsum,squad"], "no general-ability task called squad; there are xsum, gsm8k"),
        ([*score, "xsum", "--data", f"gsm8k={data}"], "--tasks asks for xsum"),
        ([*score, "xsum", "--data", f"squad={data}"], "there are xsum, gsm8k"),
        ([*score, "xsum", "--data", str(data)], "give a task and a folder, such as --data xsum=path/to/xsum"),
        ([*score, "xsum", "--data", f"xsum={data / 'gsm8k'}"], "lacks the column document"),
        ([*score, "xsum", "--data", f"xsum={data}"], "no file of the split test"),
        ([*score, "gsm8k", "--fewshot", "-1", "--data", f"gsm8k={data / 'gsm8k'}"],
         "--fewshot should be greater than or equal to 0, not '-1'"),
        ([*score, "xsum"], "pass --data xsum=FOLDER"),
        (train, "give --mastery DATA and --bucket N"),
        ([*train, "--task", "xsum", "--bucket", "1"], "--bucket and --task do not go together"),
        ([*train, "--task", "squad"], "no general-ability task called squad"),
        (["ability", base, "--size", "25", "--tasks", "gsm8k", "--data", f"gsm8k={data / 'gsm8k'}", "--out", out],
         "25 training rows were asked for and 24 of 24 fit into 512 tokens; ask for fewer"),
        (["ability", base, "--size", "none", "--out", out], "give a whole number of at least 1, or `all`"),
    ):  # fmt: skip
        assert main(command) == 2, command
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("sftknow: ")
        assert said in lines[-1]
        assert not any("Traceback" in line for line in lines)
    assert not list(tmp_path.glob("out/**/*.safetensors"))
