"""What can be known at the start is said at the start: no mistake costs an hour of grading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from sftknow.artifacts.stages import RunDirectory
from sftknow.errors import SftknowError
from sftknow.run.experiment import Experiment
from tests.run.small_run import small_recipe

# Few facts, so that one check takes no time.
FEW = "facts.limit=40"


def refused(out: Path, *settings: str) -> str:
    """The line with which a run is refused before any work."""
    with RunDirectory(out) as directory, pytest.raises(SftknowError) as told:
        Experiment(small_recipe(FEW, *settings), directory, say=lambda line: None).run()
    assert [path.name for path in out.iterdir()] == [".lock"], "nothing was begun"
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["restore.cells=[b1-n8-s0]"], "b1-n8-s0 is not in the grid"),
        (["grid.buckets=[]", "restore.controls=1"], "restore.controls has no effect"),
        (["restore.levels=['7%']"], "7% is not among parameters.levels"),
        (["parameters.levels=['5%','5%']", "restore.levels=['5%']"], "asked for twice"),
        (["parameters.levels=['500%']", "restore.levels=['500%']"], "more than the whole region"),
        (["parameters.region=attentoin"], "unknown region 'attentoin'"),
        (["parameters.layers=77-80"], "has no tensor in transformer with layers 77-80"),
        (["grid.seeds=[0,0]"], "b0-n8-s0 comes twice"),
        (["grid.baselines={b0-n8-s0: lab}"], "name of another model of the run"),
        (["grid.baselines={chat: nowhere/at/all}"], "there is no model at nowhere/at/all"),
        (["grid.chat_template=true"], "grid.chat_template: there is no model to ask in it; name one under grid.base"),
        (["grid.chat_template=true", "grid.baselines={a: lab, a-chat: lab}"], "a is the name of another model"),
        (["grid.sizes=[5000]"], "lab has 40 training facts in all, too few for every cell of the grid; what fits: "),
        (["sft.per_device_batch_size=3"], "does not divide batch_size 8"),
        (["sft.optimizer=adamw"], "sft.optimizer should be 'adamw_torch', "),
        (["sft.load_dtype=float16"], "load_dtype float16 cannot be trained"),
        (["sft.max_length=8"], "raise max_length"),
        (["tracking.report_to=[trackio]"], "pip install trackio"),
        (["model.path=/nowhere"], "there is no model at /nowhere"),
        (["model.device='cuda:7'"], "this machine has no device"),
        (["accelerate.processes=3"], "cannot be shared equally among 3 processes"),
        (["accelerate.config=fsdp-9b"], "fsdp-9b"),
        (["parameters.ignore='('"], "the ignored names' regular expression '(' cannot be read"),
        (["divergence.window=4000"], "Give a smaller divergence.window"),
        (["grid.lora=true", "lora.target_modules=[nothing]"], "change lora.target_modules"),
        (
            ["grid.strategies=[last-layers]", "strategies.last-layers.layers=99"],
            "strategies.last-layers: last-layers: l",
        ),
        (
            ["grid.strategies=[attention-only]", "strategies.attention-only.region='re:nothing'"],
            "strategies.attention-only: LlamaForCausalLM has no parameter in the region re:nothing",
        ),
        (
            ["grid.strategies=[restoring]", "strategies.restoring.region='re:nothing'"],
            "strategies.restoring: LlamaForCausalLM has no parameter in the region re:nothing",
        ),
    ],
)
def test_refused_at_the_start(settings: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sftknow.training.arguments.find_spec", lambda name: None)
    assert words in refused(tmp_path / "run", *settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU that can do it")
def test_a_dtype_that_only_a_gpu_computes_in(tmp_path: Path) -> None:
    assert "needs a CUDA device" in refused(tmp_path / "run", "sft.compute_dtype=float16")


def test_a_base_that_cannot_be_trained(tmp_path: Path, tiny_model: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / "tokenizer.json").unlink()
    (base / "tokenizer_config.json").unlink()
    assert "no tokenizer that can be loaded" in refused(tmp_path / "one", f"model.path={base}")

    shutil.rmtree(base)
    shutil.copytree(tiny_model, base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    (base / "special_tokens_map.json").unlink(missing_ok=True)
    assert "without an EOS token" in refused(tmp_path / "two", f"model.path={base}")

    shutil.rmtree(base)
    shutil.copytree(tiny_model, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    assert "would have to grow" in refused(tmp_path / "three", f"model.path={base}")


def test_a_baseline_without_a_tokenizer_is_named(tmp_path: Path, tiny_model: Path) -> None:
    chat = tmp_path / "chat"
    shutil.copytree(tiny_model, chat)
    (chat / "tokenizer.json").unlink()
    (chat / "tokenizer_config.json").unlink()
    line = refused(tmp_path / "run", f"grid.baselines={{chat: {chat}}}")
    assert line.startswith("grid.baselines.chat: ")
    assert "no tokenizer" in line


def test_a_chat_template_that_is_not_there_is_named(tmp_path: Path, tiny_model: Path) -> None:
    line = refused(tmp_path / "run", f"grid.baselines={{chat: {tiny_model}}}", "grid.chat_template=true")
    assert line == f"grid.chat_template: the tokenizer of {tiny_model} has none; set it to false"


def test_too_few_rows_of_another_task(tmp_path: Path) -> None:
    data = tmp_path / "gsm8k"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n' * 3)
    asked = ["general.tasks=[gsm8k]", f"general.data={{gsm8k: {data}}}"]
    line = refused(tmp_path / "run", *asked, "general.size=4")
    assert line == "general.size: gsm8k has 3 training rows, fewer than 4; ask for fewer"
    (data / "test.jsonl").unlink()
    assert "has no file of the split test" in refused(tmp_path / "run", *asked, "general.size=3")


def test_a_window_in_which_no_answer_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The completions are the lab's own; as if its answers began at the sixth token."""
    from sftknow.divergence import base

    began = base.starts_near
    monkeypatch.setattr(
        base, "starts_near", lambda text, head, *more: len(head.split()) >= 4 and began(text, text, *more)
    )
    line = refused(tmp_path / "run")
    assert line.startswith("divergence.window: lab starts no answer within its first 3 tokens (")
    assert line.endswith(": --set divergence.window=5") or line.endswith(": --set divergence.window=8")


@pytest.mark.slow
def test_a_run_goes_on_where_divergence_cannot_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out after the grading: everything else is done, and a start with a wider window measures it, too."""
    from sftknow.divergence import base

    said: list[str] = []
    settings = ("divergence.window=3", "evaluation.regrade=0", "evaluation.examples=0", "restore.controls=0")
    with monkeypatch.context() as patch, RunDirectory(tmp_path / "run") as directory:
        patch.setattr("sftknow.run.experiment.check_window", lambda bench: None)
        patch.setattr(base, "starts_near", lambda *_: False)
        Experiment(small_recipe(*settings), directory, say=said.append).run()
    assert any(
        line.startswith("token divergence is not measured, the rest is done: the base starts no") for line in said
    )
    assert (tmp_path / "run" / "report" / "report.html").is_file()
    assert (tmp_path / "run" / "choice.json").is_file()
    assert not (tmp_path / "run" / "divergence").exists()
    with RunDirectory(tmp_path / "run") as directory:
        Experiment(small_recipe(*settings), directory, say=said.append).run()
    assert len(list((tmp_path / "run" / "divergence").iterdir())) == 2
