"""What a model's generation configuration says makes no difference to its greedy answers, on either path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sftknow.errors import ModelError
from sftknow.evaluation.greedy import end_tokens, greedy, pins
from sftknow.evaluation.harness import Harness
from sftknow.prompts import prompt_ids
from sftknow.resources import task_folder
from tests.tiny import tiny_facts, tiny_llama, tiny_tokenizer

ODD: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 3.0},
    "sampling": {"do_sample": True, "temperature": 1.5, "top_k": 5, "top_p": 0.5},
    "min_new_tokens": {"min_new_tokens": 12},
    "max_new_tokens": {"max_new_tokens": 40},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "beams": {"num_beams": 3},
    "suppressed": {"suppress_tokens": list(range(40, 80)), "begin_suppress_tokens": [100]},
    "bad words": {"bad_words_ids": [[number] for number in range(90, 160)]},
    "dictionary": {"return_dict_in_generate": True, "output_scores": True},
    "no end": {"eos_token_id": None},
    "another end": {"eos_token_id": 7},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that often says its end token, so that a missing one shows."""
    folder = tiny_llama(tmp_path_factory.mktemp("plain") / "model", tiny_tokenizer())
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[1] *= 3.0
    model.save_pretrained(folder)
    return folder


def with_options(plain: Path, folder: Path, options: dict[str, Any]) -> Path:
    folder.mkdir()
    for file in plain.iterdir():
        if file.name != "generation_config.json":
            (folder / file.name).write_bytes(file.read_bytes())
    stored = GenerationConfig.from_pretrained(plain).to_dict()
    (folder / "generation_config.json").write_text(json.dumps({**stored, **options}))
    return folder


def outputs_of_lm_eval(folder: Path, dataset: Path) -> dict[str, str]:
    metadata = {"pretrained": str(folder), "mastery_dataset": str(dataset)}
    manager = TaskManager(include_path=str(task_folder()), include_defaults=False, metadata=metadata)
    lm = HFLM(pretrained=str(folder), device="cpu", batch_size=16)
    found = simple_evaluate(lm, tasks=["cbqa_mastery_test"], task_manager=manager, bootstrap_iters=1)
    return {
        sample["doc"]["fact_id"]: sample["filtered_resps"][0] for leaf in found["samples"].values() for sample in leaf
    }


def outputs_in_process(folder: Path, dataset: Path) -> dict[str, str]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    before = model.generation_config
    run = Harness(dataset, splits=("test",), batch_size=16).score(model, tokenizer, name="m")
    assert model.generation_config is before
    return {question.fact_id: question.output for question in run.questions}


@pytest.fixture(scope="module")
def expected(plain: Path, tiny_dataset: Path) -> dict[str, str]:
    found = outputs_in_process(plain, tiny_dataset)
    assert len({len(text) for text in found.values()}) > 3, "some answers end early"
    return found


@pytest.mark.parametrize("name", ODD)
def test_options_change_nothing(
    name: str, plain: Path, expected: dict[str, str], tiny_dataset: Path, tmp_path: Path
) -> None:
    folder = with_options(plain, tmp_path / "odd", ODD[name])
    if name == "another end":
        # What a model itself calls an end is one, beside the tokenizer's.
        assert outputs_of_lm_eval(folder, tiny_dataset) == outputs_in_process(folder, tiny_dataset)
        return
    assert outputs_in_process(folder, tiny_dataset) == expected
    assert outputs_of_lm_eval(folder, tiny_dataset) == expected


def test_the_options_would_make_a_difference(plain: Path, tmp_path: Path) -> None:
    """Without the pins some of these do change what `generate` gives: the tests above can fail."""
    tokenizer = AutoTokenizer.from_pretrained(plain)
    questions = [fact.question for fact in tiny_facts(12)]

    def ask(folder: Path) -> list[list[int]]:
        model = AutoModelForCausalLM.from_pretrained(folder)
        found = []
        for question in questions:
            ids = torch.tensor([prompt_ids(tokenizer, question)])
            found.append(model.generate(input_ids=ids, max_length=ids.shape[1] + 16, do_sample=False)[0].tolist())
        return found

    usual = ask(plain)
    names = ("repetition_penalty", "no_repeat_ngram_size", "suppressed", "max_new_tokens", "min_new_tokens")
    changed = {name for name in names if ask(with_options(plain, tmp_path / name, ODD[name])) != usual}
    assert len(changed) >= 2, changed


def test_ordinary_models_need_no_pins(plain: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(plain)
    assert pins(GenerationConfig.from_pretrained(plain), tokenizer) == {}
    sampling = GenerationConfig(eos_token_id=1, do_sample=True, temperature=0.6, top_p=0.9, max_length=4096)
    assert pins(sampling, tokenizer) == {}


def test_several_ends(plain: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(plain)
    assert end_tokens(GenerationConfig(eos_token_id=[7, 1]), tokenizer) == [1, 7]
    assert end_tokens(GenerationConfig(), tokenizer) == [1]
    tokenizer.eos_token = None
    assert end_tokens(GenerationConfig(eos_token_id=7), tokenizer) == [7]
    with pytest.raises(ModelError, match="no end token"):
        end_tokens(GenerationConfig(), tokenizer)


def test_generation_configuration_comes_back_after_an_error(plain: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(plain), AutoTokenizer.from_pretrained(plain)
    before = model.generation_config
    with pytest.raises(KeyboardInterrupt), greedy(model, tokenizer):  # noqa: PT012 - what stands inside is the test
        assert model.generation_config.to_dict()["eos_token_id"] == [1]
        raise KeyboardInterrupt
    assert model.generation_config is before
