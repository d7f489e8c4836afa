"""The in-process way: lm-eval's own numbers, prompts of training equal to those of evaluation, few-shot, limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from sftknow.artifacts.general_scores import read_general, write_general
from sftknow.errors import GeneralTaskError, ModelError
from sftknow.evaluation.general.runner import GeneralHarness
from sftknow.evaluation.general.tasks import find_task
from tests.evaluation.general.stand_in import gsm8k_rows, write_stand_in, xsum_rows
from tests.tiny import tiny_llama, tiny_tokenizer


class Calculator(torch.nn.Module):
    """Stands where a model stands: looks up the prompt's last line and answers half of the rows as expected."""

    def __init__(self, model: Any, tokenizer: Any, answers: dict[str, str]) -> None:
        super().__init__()
        self.config, self.device, self.tokenizer = model.config, torch.device("cpu"), tokenizer
        self.generation_config, self.answers = model.generation_config, answers

    def tie_weights(self) -> None: ...

    def generate(self, *, input_ids: torch.Tensor, pad_token_id: int, **_: Any) -> torch.Tensor:
        outputs = []
        for row in input_ids:
            text = self.tokenizer.decode(row, skip_special_tokens=True)
            key = max((key for key in self.answers if key in text), key=text.rfind)
            outputs.append([*self.tokenizer(self.answers[key], add_special_tokens=False)["input_ids"], 1])
        width = max(map(len, outputs))
        return torch.cat([input_ids, torch.tensor([o + [pad_token_id] * (width - len(o)) for o in outputs])], dim=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("general") / "data")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    import transformers

    tokenizer = tiny_tokenizer([text for row in gsm8k_rows(8) + xsum_rows(8) for text in row.values()])
    folder = tiny_llama(tmp_path_factory.mktemp("general-model") / "model", tokenizer)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.config.max_position_embeddings = 1024
    return model, tokenizer


@pytest.fixture(scope="module")
def calculator(loaded: tuple[Any, Any]) -> Callable[[], Any]:
    rows = gsm8k_rows(6, start=100)
    wrong = {1: " it is 12 or so", 3: " #### 1,0", 4: ""}
    answers = {row["question"]: wrong.get(i, f" {row['answer']}") for i, row in enumerate(rows)}
    return lambda: Calculator(*loaded, answers)


def test_gsm8k_is_lm_evals_own(data: Path, loaded: tuple[Any, Any], calculator: Callable[[], Any]) -> None:
    """Against lm-eval's task as it is, with nothing replaced but where its data lie."""
    import lm_eval

    ours = GeneralHarness(find_task("gsm8k"), data / "gsm8k", batch_size=4).score(calculator(), loaded[1], name="c")
    files = {split: str(data / "gsm8k" / f"{split}.jsonl") for split in ("train", "test")}
    manager = TaskManager(include_path=str(Path(lm_eval.__file__).parent / "tasks" / "gsm8k"), include_defaults=False)
    own = {"task": "gsm8k", "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    lm = HFLM(pretrained=calculator(), tokenizer=loaded[1], batch_size=4)
    theirs = simple_evaluate(lm, tasks=[{"group": "g", "task": [own]}], task_manager=manager)
    assert ours.few_shot == 5
    for metric in ours.metrics:
        assert metric.value == theirs["results"]["gsm8k"][metric.lm_eval_name]
        assert metric.stderr == theirs["results"]["gsm8k"][metric.lm_eval_name.replace(",", "_stderr,")]
    assert (ours.value("acc").value, ours.value("acc_flexible").value) == (3 / 6, 3 / 6)
    prompts = {s["doc_id"]: s["arguments"][0][0] for s in theirs["samples"]["gsm8k"]}
    assert {answer.row: answer.prompt for answer in ours.answers} == prompts
    assert all(answer.prompt.count("Question:") == 6 for answer in ours.answers)


def test_answers_and_files(tmp_path: Path, data: Path, loaded: tuple[Any, Any], calculator: Callable[[], Any]) -> None:
    harness = GeneralHarness(find_task("gsm8k"), data / "gsm8k", few_shot=0)
    scores = harness.score(calculator(), loaded[1], name="c")
    assert harness.score(calculator(), loaded[1], name="c") == scores, "a harness serves any number of models"
    assert [answer.scores["acc"] for answer in scores.answers] == [1, 0, 1, 0, 0, 1]
    row = gsm8k_rows(1, start=100)[0]
    assert scores.answers[0].prompt == f"Question: {row['question']}\nAnswer:"
    assert scores.answers[0].expected == row["answer"]
    assert scores.answers[0].output == f" {row['answer']}"
    value = scores.value("acc")
    assert value.stderr == pytest.approx(math.sqrt(0.25 * 6 / 5 / 6))
    path = write_general(tmp_path / "out", scores)
    assert read_general(path) == scores


def test_limit(data: Path, loaded: tuple[Any, Any], calculator: Callable[[], Any]) -> None:
    scores = GeneralHarness(find_task("gsm8k"), data / "gsm8k", few_shot=0, limit=2).score(
        calculator(), loaded[1], name="c"
    )
    assert [answer.row for answer in scores.answers] == [0, 1]
    assert scores.value("acc").count == 2


@pytest.mark.parametrize("name", ["gsm8k", "xsum"])
def test_training_rows_are_shown_as_test_rows_are(name: str, data: Path) -> None:
    harness = GeneralHarness(find_task(name), data / name, few_shot=0)
    rows = list(harness.training_rows(seed=3))
    assert sorted(row.id for row in rows) == sorted(f"train/{i}" for i in range(16))
    assert rows != list(harness.training_rows(seed=4))
    assert rows == list(harness.training_rows(seed=3))
    first = next(row for row in rows if row.id == "train/0")
    if name == "gsm8k":
        row = gsm8k_rows(1)[0]
        assert (first.prompt, first.completion) == (f"Question: {row['question']}\nAnswer:", f" {row['answer']}")
    else:
        row = xsum_rows(1)[0]
        document = row["document"].replace("\n", " ")
        assert (first.prompt, first.completion) == (f"Article: {document}\nSummary:", f" {row['summary']}")


def test_refused(data: Path, loaded: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(GeneralTaskError, match="xsum is asked without examples"):
        GeneralHarness(find_task("xsum"), data / "xsum", few_shot=2)
    short = write_stand_in(tmp_path / "short", train=2) / "gsm8k"
    with pytest.raises(GeneralTaskError, match="5 examples are wanted before each question and the train split has 2"):
        GeneralHarness(find_task("gsm8k"), short)
    (short / "train.jsonl").unlink()
    GeneralHarness(find_task("gsm8k"), short, few_shot=0)
    model, tokenizer = loaded
    model.config.max_position_embeddings = 128
    with pytest.raises(ModelError, match="m takes 128 tokens and gsm8k asks for up to 256 of output alone"):
        GeneralHarness(find_task("gsm8k"), data / "gsm8k").score(model, tokenizer, name="m")
    model.config.max_position_embeddings = 1024
