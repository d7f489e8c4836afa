"""Next-token logits and completions: independent of batches and padding, equal to the plain way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sftknow.divergence.forward import (
    batches,
    first_token_logits,
    first_token_of,
    greedy,
    load_for_logits,
    statement_ids,
)
from sftknow.errors import DeviceError, ModelError
from sftknow.records import ModelRef
from tests.divergence.models import RANDOM, random_llama
from tests.tiny import tiny_tokenizer

VOCABULARY = 384
PROMPTS = [[5, 9, 200], [7], [0, 44, 45, 46, 47, 48, 49], [300, 2], [0, 1, 2, 3, 4], [9, 9, 9, 9]]


def plain_logits(model: Any, prompts: list[list[int]]) -> torch.Tensor:
    """Each prompt alone, without padding, all logits computed, the last row taken."""
    with torch.no_grad():
        return torch.stack([model(torch.tensor([prompt])).logits[0, -1] for prompt in prompts])


def collect(model: Any, prompts: list[list[int]], batch_size: int) -> torch.Tensor:
    out = torch.full((len(prompts), VOCABULARY), torch.nan)
    for indices, logits in first_token_logits(model, prompts, batch_size):
        out[indices] = logits
    return out


@pytest.fixture(scope="module", params=sorted(RANDOM))
def model(request: pytest.FixtureRequest) -> Any:
    return RANDOM[request.param](VOCABULARY)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_logits_do_not_depend_on_the_batch(model: Any, batch_size: int) -> None:
    expected = plain_logits(model, PROMPTS)
    assert expected.std() > 0.5, "logits this flat would hide an error"
    torch.testing.assert_close(collect(model, PROMPTS, batch_size), expected, rtol=0, atol=1e-5)
    difference = collect(model, PROMPTS, batch_size).log_softmax(-1) - expected.log_softmax(-1)
    assert difference.abs().max() < 5e-6


def test_padding_on_the_right_gives_the_same(model: Any) -> None:
    width = max(map(len, PROMPTS))
    ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in PROMPTS])
    mask = torch.tensor([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in PROMPTS])
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask).logits
    right = torch.stack([out[i, len(prompt) - 1] for i, prompt in enumerate(PROMPTS)])
    torch.testing.assert_close(collect(model, PROMPTS, 64), right, rtol=0, atol=1e-5)


def test_the_output_head_sees_one_position_a_prompt(model: Any) -> None:
    seen = []
    handle = model.lm_head.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    try:
        collect(model, PROMPTS, 64)
    finally:
        handle.remove()
    assert seen == [(len(PROMPTS), 1, 32)]


def test_bf16_logits_arrive_as_float32() -> None:
    model = random_llama(VOCABULARY).bfloat16()
    logits = collect(model, PROMPTS, 3)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, logits.bfloat16().float())


def test_the_model_is_left_as_it_was() -> None:
    model = RANDOM["gpt2"](VOCABULARY)  # with dropout
    model.train()
    first, second = collect(model, PROMPTS, 64), collect(model, PROMPTS, 64)
    assert model.training
    assert torch.equal(first, second)


def test_batches_hold_every_prompt_once_and_the_longest_first() -> None:
    order = batches(PROMPTS, 4)
    assert sorted(i for batch in order for i in batch) == list(range(len(PROMPTS)))
    assert [len(batch) for batch in order] == [4, 2]
    lengths = [len(PROMPTS[i]) for batch in order for i in batch]
    assert lengths == sorted(lengths, reverse=True)


def generated(model: Any, prompt: list[int], limit: int, ends: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=ends or [VOCABULARY + 1],
        pad_token_id=2,
    )[0, len(prompt) :].tolist()
    return out[:-1] if out[-1] in ends else out


def test_greedy_is_what_generate_gives(model: Any) -> None:
    limits = [6, 3, 8, 1, 5, 7]
    expected = [generated(model, prompt, limit, []) for prompt, limit in zip(PROMPTS, limits, strict=True)]
    assert [len(tokens) for tokens in expected] == limits
    assert greedy(model, PROMPTS, limits, frozenset()) == expected
    # Now with an end token that some of them meet half way.
    end = expected[2][3]
    expected = [generated(model, prompt, limit, [end]) for prompt, limit in zip(PROMPTS, limits, strict=True)]
    assert any(len(tokens) < limit for tokens, limit in zip(expected, limits, strict=True))
    assert greedy(model, PROMPTS, limits, frozenset({end})) == expected


def test_greedy_names_a_broken_model() -> None:
    model = random_llama(VOCABULARY)
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(ModelError, match="predicts NaN"):
        greedy(model, PROMPTS, [2] * len(PROMPTS), frozenset())


def test_a_statement_has_one_bos_and_no_eos() -> None:
    tokenizer = tiny_tokenizer()
    ids = statement_ids(tokenizer, "The capital of Arden is")
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id

    class Closing:
        """A tokenizer that closes every text with EOS."""

        eos_token_id = tokenizer.eos_token_id

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]}

    assert statement_ids(Closing(), "The capital of Arden is") == ids


def test_first_token_of_an_answer_continues_the_prompt() -> None:
    tokenizer = tiny_tokenizer()
    prompt = "The capital of Onia is"
    whole = tokenizer(f"{prompt} Belmora", add_special_tokens=False)["input_ids"]
    assert (
        first_token_of(tokenizer, prompt, "Belmora")
        == whole[len(tokenizer(prompt, add_special_tokens=False)["input_ids"])]
    )
    assert tokenizer.decode([first_token_of(tokenizer, prompt, "Belmora")]).startswith(" ")


def test_loading_in_float32_unless_told_otherwise(tiny_model: Path) -> None:
    model, tokenizer = load_for_logits(ModelRef(path=str(tiny_model)), device="cpu")
    assert model.dtype == torch.float32
    assert not model.training
    assert tokenizer.bos_token == "<s>"
    assert load_for_logits(ModelRef(path=str(tiny_model), dtype="bfloat16"))[0].dtype == torch.bfloat16


def test_loading_what_cannot_be_loaded_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    def message(ref: ModelRef, device: str = "cpu") -> str:
        with pytest.raises((ModelError, DeviceError)) as caught:
            load_for_logits(ref, device)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in message(ModelRef(path=str(tmp_path / "empty")))
    assert "nowhere" in message(ModelRef(path=str(tmp_path / "nowhere")))
    assert "'float33' is no dtype" in message(ModelRef(path=str(tiny_model), dtype="float33"))
    assert "'int8' is no dtype" in message(ModelRef(path=str(tiny_model), dtype="int8"))
    assert "no device 'abacus'" in message(ModelRef(path=str(tiny_model)), "abacus")


def test_a_checkpoint_with_a_tensor_missing_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    gone = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != gone}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=gone):
        load_for_logits(ModelRef(path=str(tmp_path)), device="cpu")
