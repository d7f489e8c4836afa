"""`sftknow sft`: what it shows, and what it refuses before it trains anything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sftknow.cli.main import main
from sftknow.training import train
from tests.cli.test_main import refused
from tests.evaluation.general.stand_in import write_stand_in
from tests.tiny import tiny_tokenizer


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(train, "train_in_place", never)


@pytest.fixture
def asked(tiny_dataset: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The arguments of a training, with others on top."""

    def arguments(model: Path | str, *more: str, bucket: str = "2", size: str = "4") -> list[str]:
        data = ["--mastery", str(tiny_dataset), "--bucket", bucket, "--size", size, "--out", str(tmp_path / "out")]
        return ["sft", "--model", str(model), *data, *more]

    return arguments


@pytest.mark.usefixtures("untrained")
def test_the_first_batch_is_shown_and_nothing_trained(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sft", "--model", str(tiny_model), "--mastery", str(tiny_dataset), "--bucket", "mixed"]
    assert main([*arguments, "--size", "11", "--show-batch", "--set", "batch_size=4"]) == 0
    head, *lines = capsys.readouterr().out.strip().split("\n")
    assert "4 of 11 examples" in head
    assert len(lines) == 4
    counted = [int(line.partition("(")[2].partition(" of ")[0]) for line in lines]
    assert f"{sum(counted)} of " in head
    for line in lines:
        question, _, answer = line.partition("<|answer|>")
        assert "[[" not in question
        assert answer.startswith("[[ ")
        assert answer.endswith(" </s>]]")
    assert main([*arguments, "--size", "4", "--show-batch", "--set", "answer_only_loss=false"]) == 0
    assert all(line.split(") ", 1)[1].startswith("[[<s>") for line in capsys.readouterr().out.strip().split("\n")[1:])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("untrained")
def test_unknown_strategies_and_what_is_missing(
    asked: Callable[..., list[str]], tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--bucket best: there is no such strategy" in refused(capsys, *asked(tiny_model, bucket="best"))
    assert "--bucket 5: there is no such strategy" in refused(capsys, *asked(tiny_model, bucket="5"))
    assert "bucket" in refused(capsys, *asked(tiny_model, size="5"))
    assert "--out" in refused(capsys, *asked(tiny_model)[:-2])
    line = refused(capsys, *asked(tiny_model, "--set", "optimizer=lion"))
    assert "--set: optimizer should be 'adamw_torch', 'adamw_torch_fused', 'adafactor' or 'sgd', not 'lion'" in line


@pytest.mark.usefixtures("untrained")
def test_bases_that_cannot_be_trained(
    asked: Callable[..., list[str]], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny_model, tmp_path / name))

    for file in copy("no-tokenizer").glob("tokenizer*"):
        file.unlink()
    assert "has no tokenizer" in refused(capsys, *asked(tmp_path / "no-tokenizer"))
    settings = copy("no-eos") / "tokenizer_config.json"
    content = json.loads(settings.read_text())
    del content["eos_token"]
    settings.write_text(json.dumps(content))
    assert "without an EOS token" in refused(capsys, *asked(tmp_path / "no-eos"))
    grown = tiny_tokenizer()
    grown.add_tokens(["<extra>"])
    grown.save_pretrained(copy("grown"))
    assert "vocabulary would have to grow" in refused(capsys, *asked(tmp_path / "grown"))
    assert "has no revision v9" in refused(capsys, *asked(f"{tiny_model}@v9"))
    assert "has no revision v9" in refused(capsys, *asked("lab@v9"))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("untrained")
def test_devices_that_are_not_there(
    asked: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are looked at first: this model is not even there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for more, said in (
        (("--set", "compute_dtype=float16"), "float16 needs a CUDA device"),
        (("--processes", "3"), "batch_size 8 cannot be shared equally among 3 processes"),
        (("--accelerate", "fsdp-8b"), "FSDP needs CUDA devices"),
        (("--accelerate", "nothing"), "there is no nothing; there are deepspeed-zero3-70b"),
        (("--report-to", "wandb"), "pip install wandb"),
    ):
        assert said in refused(capsys, *asked("nowhere", *more))


def test_a_launcher_does_not_start_another(
    asked: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert "leave them out" in refused(capsys, *asked("nowhere", "--processes", "2"))
    assert "for whole runs set accelerate.processes" in refused(capsys, "run", "lab", "--out", "nowhere")


@pytest.mark.usefixtures("untrained")
def test_one_process_where_several_were_meant_is_noted(
    asked: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert main(asked("nowhere")) == 2
    assert "starts one process; for several give --multi_gpu" in capsys.readouterr().err


@pytest.mark.usefixtures("untrained")
def test_the_first_batch_of_a_task_is_shown_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_stand_in(tmp_path / "data") / "gsm8k"
    assert (
        main(["sft", "--model", "lab", "--task", "gsm8k", "--data", f"gsm8k={data}", "--size", "3", "--show-batch"])
        == 0
    )
    head, *lines = capsys.readouterr().out.strip().split("\n")
    assert "3 of 3 examples" in head
    assert len(lines) == 3
    assert all("\\nAnswer:[[ " in line and "####" in line.partition("[[")[2] for line in lines)
