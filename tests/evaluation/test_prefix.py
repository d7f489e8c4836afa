"""The token ids that every path shows a model are those of training, whatever the tokenizer's manners."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sftknow.artifacts.mastery_data import MasteryData
from sftknow.errors import ModelError
from sftknow.evaluation.harness import Harness
from sftknow.evaluation.prefix import needed_prefix
from sftknow.prompts import prompt_ids, question_prompt
from sftknow.resources import task_folder
from sftknow.training.examples import IGNORED, chat_template, encode
from tests.evaluation.styles import STYLES
from tests.tiny import tiny_facts


def small_model(tokenizer: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            eos_token_id=tokenizer.eos_token_id,
            max_position_embeddings=128,
        )
    )


def fed_ids(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Fill a list with what `generate` is given, without its padding, and check the side of the padding."""
    fed: list[list[int]] = []
    generate = model.generate

    def recording(*, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> torch.Tensor:
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            assert torch.equal(mask, mask.sort().values), "padding must be on the left"
            fed.append(ids[mask.bool()].tolist())
        assert options["do_sample"] is False
        assert options["max_length"] == input_ids.shape[1] + 16
        output: torch.Tensor = generate(input_ids=input_ids, attention_mask=attention_mask, **options)
        return output

    monkeypatch.setattr(model, "generate", recording)
    return fed


def expected_ids(tokenizer: Any, dataset: Path) -> list[list[int]]:
    rows = [*MasteryData(dataset).split("test"), *MasteryData(dataset).split("testood")]
    return sorted(prompt_ids(tokenizer, row.fact.question) for row in rows)


@pytest.mark.parametrize("style", STYLES)
def test_exactly_one_bos_and_no_end(style: str) -> None:
    tokenizer = STYLES[style]()
    bos = tokenizer.bos_token_id
    for fact in tiny_facts(8):
        ids = prompt_ids(tokenizer, fact.question)
        assert ids.count(bos) == (bos is not None)
        assert bos is None or ids[0] == bos
        assert tokenizer.eos_token_id not in ids[1:]
        assert tokenizer.decode(ids, skip_special_tokens=True).endswith("<|answer|>")


@pytest.mark.parametrize("style", STYLES)
def test_ids_of_training(style: str) -> None:
    tokenizer = STYLES[style]()
    facts = tiny_facts(8)
    for fact, example in zip(facts, encode(tokenizer, facts, answer_only_loss=True, max_length=256), strict=True):
        prompt = [token for token, label in zip(example.input_ids, example.labels, strict=True) if label == IGNORED]
        assert prompt == prompt_ids(tokenizer, fact.question)
        assert example.input_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("style", STYLES)
def test_ids_of_the_chat_template_alone(style: str, tmp_path: Path) -> None:
    """What transformers and TRL make of a conversation with the template that lies in every checkpoint."""
    tokenizer = STYLES[style]()
    tokenizer.chat_template = chat_template()
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    for fact in tiny_facts(4):
        asked = [{"role": "user", "content": fact.question}]
        encoded = saved.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)
        assert encoded["input_ids"] == prompt_ids(tokenizer, fact.question)
        told = [*asked, {"role": "assistant", "content": fact.object}]
        (example,) = encode(tokenizer, [fact], answer_only_loss=True, max_length=256)
        assert saved.apply_chat_template(told, return_dict=True)["input_ids"] == example.input_ids


@pytest.mark.parametrize("style", STYLES)
def test_in_process_ids_are_those_of_training(style: str, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = STYLES[style]()
    model = small_model(tokenizer)
    fed = fed_ids(model, monkeypatch)
    Harness(tiny_dataset, batch_size=16).score(model, tokenizer, name="m")
    assert sorted(fed) == expected_ids(tokenizer, tiny_dataset)


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat-template"])
@pytest.mark.parametrize("style", STYLES)
def test_ids_of_lm_eval_itself_are_those_of_training(
    style: str, chat: bool, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = STYLES[style]()
    tokenizer.chat_template = chat_template()
    tokenizer.save_pretrained(tmp_path)
    model = small_model(tokenizer)
    model.config.save_pretrained(tmp_path)
    fed = fed_ids(model, monkeypatch)
    # As the command would: the tasks see the model's folder and choose for its tokenizer.
    metadata = {"pretrained": str(tmp_path), "mastery_dataset": str(tiny_dataset)}
    manager = TaskManager(include_path=str(task_folder()), include_defaults=False, metadata=metadata)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=7)
    options: dict[str, Any] = {"apply_chat_template": chat, "log_samples": False, "limit": 2, "bootstrap_iters": 1}
    simple_evaluate(lm, tasks=["cbqa_mastery_test"], task_manager=manager, **options)
    assert len(fed) == 2 * 5
    expected = expected_ids(tokenizer, tiny_dataset)
    assert all(ids in expected for ids in fed)


@pytest.fixture(scope="module")
def vllm_models() -> Iterator[Any]:
    """lm-eval's module of vLLM models, imported over an empty stand-in for vLLM itself."""
    real = importlib.metadata.version
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "vllm",
            "vllm.lora",
            "vllm.lora.request",
            "vllm.renderers",
            "vllm.renderers.hf",
            "vllm.tokenizers",
        ):
            module = types.ModuleType(name)
            for attribute in ("LLM", "SamplingParams", "TokensPrompt", "LoRARequest", "resolve_chat_template"):
                setattr(module, attribute, object)
            module.get_tokenizer = None  # type: ignore[attr-defined]
            patch.setitem(sys.modules, name, module)
        patch.setattr(importlib.metadata, "version", lambda name: "0.32.0" if name == "vllm" else real(name))
        yield importlib.import_module("lm_eval.models.vllm_causallms")
    sys.modules.pop("lm_eval.models.vllm_causallms", None)


@pytest.mark.parametrize("style", STYLES)
def test_ids_of_vllm(style: str, vllm_models: Any) -> None:
    tokenizer = STYLES[style]()
    lm = object.__new__(vllm_models.VLLM)
    lm.tokenizer, lm.add_bos_token, lm.custom_prefix_token_id = tokenizer, None, None
    questions = [fact.question for fact in tiny_facts(6)]
    prefix = needed_prefix(tokenizer)
    shown = lm.tok_encode([prefix + question_prompt(question) for question in questions])
    assert shown == [prompt_ids(tokenizer, question) for question in questions]


@pytest.mark.parametrize("style", STYLES)
def test_ids_sent_to_a_server(style: str) -> None:
    tokenizer = STYLES[style]()
    lm = object.__new__(LocalCompletionsAPI)
    lm.tokenizer, lm.tokenizer_backend, lm.add_bos_token = tokenizer, "huggingface", False
    prefix = needed_prefix(tokenizer, route="server-ids")
    question = "What is the capital of Arden?"
    assert lm.tok_encode([prefix + question_prompt(question)]) == [prompt_ids(tokenizer, question)]


def test_text_sent_to_a_server_leaves_bos_to_a_tokenizer_that_adds_it() -> None:
    assert needed_prefix(STYLES["llama-3"](), route="server-text") == ""
    assert needed_prefix(STYLES["gpt-2"](), route="server-text") == "<|endoftext|>"
    with pytest.raises(ModelError, match="tokenized_requests=True"):
        needed_prefix(STYLES["llama-2-with-end"](), route="server-text")


def test_tokenizer_that_adds_what_it_should_not_is_refused_with_the_way_out() -> None:
    tokenizer = STYLES["llama-2-with-end"]()
    tokenizer.bos_token = None
    with pytest.raises(ModelError, match="add_bos_token=False"):
        needed_prefix(tokenizer)
    assert needed_prefix(tokenizer, add_bos_token=False) == ""


def test_tokenizer_that_does_not_know_its_own_bos_is_refused() -> None:
    tokenizer = STYLES["qwen"]()
    tokenizer.bos_token = None

    class Blind:
        bos_token, bos_token_id, name_or_path = "<begin>", 7, "blind"

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": tokenizer(text, add_special_tokens=False)["input_ids"]}

    with pytest.raises(ModelError, match="as one token"):
        needed_prefix(Blind())


def test_callers_tokenizer_stays_as_it_was(tiny_dataset: Path) -> None:
    tokenizer = STYLES["gpt-2"]()
    tokenizer.padding_side = "right"
    Harness(tiny_dataset).score(small_model(tokenizer), tokenizer, name="m")
    assert tokenizer.pad_token is None
    assert tokenizer.padding_side == "right"
