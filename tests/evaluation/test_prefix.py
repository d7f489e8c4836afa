"""The token ids that lm-eval feeds are those of training, whatever the tokenizer's manners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import LlamaConfig, LlamaForCausalLM

from sftknow.errors import ModelError
from sftknow.evaluation.harness import Harness
from sftknow.evaluation.prefix import needed_prefix
from sftknow.prompts import prompt_ids
from sftknow.resources import task_folder
from sftknow.storage.mastery_data import MasteryData
from tests.evaluation.styles import STYLES, sentencepiece_without_bos


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
def test_in_process_ids_are_those_of_training(style: str, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = STYLES[style]()
    model = small_model(tokenizer)
    fed = fed_ids(model, monkeypatch)
    Harness(tiny_dataset, batch_size=16).score(model, tokenizer, name="m")
    assert sorted(fed) == expected_ids(tokenizer, tiny_dataset)
    bos = tokenizer.bos_token_id
    assert all(ids.count(bos) == (bos is not None) for ids in fed)


@pytest.mark.parametrize("style", STYLES)
def test_ids_of_lm_eval_itself_are_those_of_training(
    style: str, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = STYLES[style]()
    tokenizer.save_pretrained(tmp_path)
    model = small_model(tokenizer)
    fed = fed_ids(model, monkeypatch)
    # As the command would: the tasks see the model's folder and choose for its tokenizer.
    metadata = {"pretrained": str(tmp_path), "mastery_dataset": str(tiny_dataset)}
    manager = TaskManager(include_path=str(task_folder()), include_defaults=False, metadata=metadata)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=7)
    simple_evaluate(lm, tasks=["cbqa_mastery"], task_manager=manager, bootstrap_iters=1)
    assert sorted(fed) == expected_ids(tokenizer, tiny_dataset)


def test_prefix_only_where_the_tokenizer_needs_it() -> None:
    assert {style: needed_prefix(make()) for style, make in STYLES.items()} == {
        "llama-3": "",
        "llama-2": "",
        "mistral": "",
        "gpt-2": "<|endoftext|>",
        "qwen": "",
    }


def test_tokenizer_that_cannot_be_fed_so_is_refused_with_the_way_out() -> None:
    with pytest.raises(ModelError, match="add_bos_token=True"):
        needed_prefix(sentencepiece_without_bos())


def test_callers_tokenizer_stays_as_it_was(tiny_dataset: Path) -> None:
    tokenizer = STYLES["gpt-2"]()
    tokenizer.padding_side = "right"
    Harness(tiny_dataset).score(small_model(tokenizer), tokenizer, name="m")
    assert tokenizer.pad_token is None
    assert tokenizer.padding_side == "right"
