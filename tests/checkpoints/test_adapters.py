"""Adapters are read merged: the bytes are those that peft's own merging and saving gives."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from sftknow.checkpoints.adapters import Adapter
from sftknow.checkpoints.index import read_index
from sftknow.checkpoints.layout import layout_like
from sftknow.checkpoints.merged import Merge, merged_index
from sftknow.checkpoints.reader import CheckpointReader
from sftknow.errors import CheckpointError
from sftknow.models.loading import load_model
from sftknow.records import ModelRef
from tests.parameters.checkpoint_pairs import read_checkpoint

DTYPES = ("float32", "bfloat16", "float16")
VOCABULARY = 96


def base_model(folder: Path, kind: str, dtype: str, seed: int = 0) -> Path:
    """A random model: ``llama``, ``tied`` (its head is its embedding), ``biased`` or ``gpt2``, with square layers."""
    torch.manual_seed(seed)
    if kind == "gpt2":
        config: Any = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=32)
    else:
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=72,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=kind == "tied",
            attention_bias=kind == "biased",
        )
    AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, *, factors: str = "float32", seed: int = 1, **settings: Any) -> Path:
    """An adapter of that base, every one of its tensors random."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                spread = 0.05 + parameter.abs().mean() if "magnitude" in name else 0.2
                parameter.add_(torch.randn_like(parameter) * spread)
    if factors != "float32":
        for module in adapted.modules():
            for part in ("lora_A", "lora_B"):
                if hasattr(module, part):
                    getattr(module, part).to(getattr(torch, factors))
    adapted.save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, folder: Path, out: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(out)
    return out


def merged_by_us(base: Path, folder: Path) -> dict[str, bytes]:
    index = merged_index(read_index(base), folder)
    with CheckpointReader() as reader:
        return {name: reader.read(entry, 0, entry.elements).tobytes() for name, entry in index.tensors.items()}


ALL = {"target_modules": "all-linear"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "all linear layers": ("llama", ALL),
    "by regex": ("llama", {"target_modules": r".*\.layers\.1\.mlp\.(up|gate)_proj"}),
    "some layers": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "rsLoRA": ("llama", {**ALL, "use_rslora": True, "r": 5, "lora_alpha": 7}),
    "DoRA": ("llama", {**ALL, "use_dora": True}),
    "ranks and alphas": (
        "llama",
        {
            **ALL,
            "rank_pattern": {"q_proj": 3, r"layers\.0\..*up_proj": 5},
            "alpha_pattern": {"q_proj": 11, "o_proj": 2},
        },
    ),
    "half factors": ("llama", {**ALL, "factors": "bfloat16"}),
    "modules to save": ("llama", {**ALL, "modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding with DoRA": ("llama", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "head": ("llama", {"target_modules": ["lm_head", "v_proj"]}),
    "tokens": ("llama", {"target_modules": ["v_proj"], "trainable_token_indices": [3, 7, 11]}),
    "bias of all": ("biased", {"target_modules": ["q_proj"], "bias": "all"}),
    "bias of the adapted": ("biased", {"target_modules": ["q_proj", "o_proj"], "bias": "lora_only"}),
    "bias of B": ("biased", {"target_modules": ["q_proj", "o_proj"], "lora_bias": True}),
    "tied": ("tied", ALL),
    "tied, embedding": ("tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied, head": ("tied", {"target_modules": ["lm_head", "q_proj"]}),
    "tied, both": ("tied", {"target_modules": ["lm_head", "embed_tokens"]}),
    "tied, head with DoRA": ("tied", {"target_modules": ["lm_head"], "use_dora": True}),
    "tied, tokens": ("tied", {"target_modules": ["v_proj"], "trainable_token_indices": [3, 7, 11]}),
    "tied, modules to save": (
        "tied",
        {**ALL, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "gpt2 with DoRA": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "use_dora": True}),
    "gpt2, embedding": ("gpt2", {"target_modules": ["wte", "c_proj"]}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_merged_as_peft_merges(tmp_path: Path, kind: str, dtype: str) -> None:
    model, settings = KINDS[kind]
    base = base_model(tmp_path / "base", model, dtype)
    made = adapter(base, tmp_path / "adapter", **settings)
    expected = read_checkpoint(merged_by_peft(base, made, tmp_path / "merged"))
    found = merged_by_us(base, made)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    before = read_checkpoint(base)
    assert any(found[name] != before[name] for name in found)
    # Loaded, it is what peft's folder gives.
    loaded, whole = load_model(ModelRef(path=str(made))), load_model(ModelRef(path=str(tmp_path / "merged")))
    assert loaded.dtype == whole.dtype
    for name, parameter in whole.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    """A base in bfloat16 and an adapter of all its linear layers."""
    base = base_model(tmp_path / "base", "llama", "bfloat16")
    return base, adapter(base, tmp_path / "adapter", **ALL)


def test_read_in_parts_by_many_threads(small: tuple[Path, Path]) -> None:
    base, made = small
    whole, index = merged_by_us(base, made), merged_index(read_index(base), made)
    jobs = [(name, first) for name, entry in index.tensors.items() for first in range(0, entry.elements, 333)]

    def part(job: tuple[str, int]) -> bool:
        name, first = job
        entry = index.tensors[name]
        found = reader.read(entry, first, min(333, entry.elements - first))
        return found.tobytes() == whole[name][2 * first : 2 * (first + 333)]

    with CheckpointReader() as reader, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(part, jobs))


def test_the_layout_is_the_bases(small: tuple[Path, Path]) -> None:
    base, made = small
    index, before = merged_index(read_index(base), made), read_index(base)
    assert [s.size for s in layout_like(index).shards] == [s.size for s in layout_like(before).shards]
    touched = {s.tensor for shard in layout_like(index).shards for s in shard.segments if s.made is not None}
    assert touched == {name for name, entry in before.tensors.items() if "_proj" in name and len(entry.shape) == 2}


def test_memory_is_that_of_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, no more than the room for formed tensors is kept."""
    base = base_model(tmp_path / "base", "llama", "float32")
    made = adapter(base, tmp_path / "adapter", **ALL)
    monkeypatch.setattr("sftknow.checkpoints.merged._KEPT_BYTES", 0)
    merge = Merge(read_index(base), Adapter.read(made))
    largest = max(entry.end - entry.start for entry in merge.index.tensors.values() if entry.made)
    kept = []
    for name in merge.changed:
        merge.values(name)
        kept.append(sum(formed.nbytes for formed in merge._formed.values()))
    assert len(kept) == 14
    assert max(kept) <= 2 * largest


def changed(folder: Path, **settings: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"peft_type": "IA3"}, r"adapter of kind IA3.*merge_and_unload"),
    "prompt": ({"peft_type": "PROMPT_TUNING"}, r"kind PROMPT_TUNING"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, r"begun as pissa_niter_4.*changes the base.*merge_and_unload"),
    "activated": ({"alora_invocation_tokens": [1, 2]}, r"LoRA with alora_invocation_tokens"),
    "experts": ({"target_parameters": ["experts.gate_up_proj"]}, r"LoRA with target_parameters"),
    "replicated layers": ({"layer_replication": [[0, 2]]}, r"LoRA with layer_replication"),
    "of tomorrow": ({"use_something_new": True}, r"LoRA with use_something_new.*merge_and_unload"),
    "rank": ({"r": 4}, r"rank 4 and alpha 8, and its matrix has shape \[8, \d+\].*download both"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_merged_exactly_is_refused_by_name(small: tuple[Path, Path], case: str) -> None:
    base, made = small
    settings, message = REFUSED[case]
    changed(made, **settings)
    with pytest.raises(CheckpointError, match=message) as error:
        merged_index(read_index(base), made)
    assert "\n" not in str(error.value)


def test_another_base_is_told_from_shapes(tmp_path: Path, small: tuple[Path, Path]) -> None:
    _, made = small
    with pytest.raises(CheckpointError, match=r"adapts model\.layers\.\d.*does not have.*own base"):
        merged_index(read_index(base_model(tmp_path / "other", "gpt2", "bfloat16")), made)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wider")
    with pytest.raises(
        CheckpointError, match=r"wider is not the base of the adapter .*has shape .*own base \(.*base\)"
    ):
        merged_index(read_index(tmp_path / "wider"), made)


@pytest.mark.filterwarnings("ignore")
def test_a_resized_vocabulary_is_refused(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "llama", "float32")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(VOCABULARY + 5)
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", modules_to_save=["embed_tokens"], **ALL)).save_pretrained(
        tmp_path / "adapter"
    )
    with pytest.raises(CheckpointError, match=r"shape \[96, 32\] there, and.*\[101, 32\].*vocabulary was resized"):
        merged_index(read_index(base), tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore")
def test_modules_that_untie_are_refused(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "tied", "float32")
    made = adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"], **ALL)
    with pytest.raises(CheckpointError, match=r"keeps lm_head in modules_to_save.*unties.*merge_and_unload"):
        merged_index(read_index(base), made)


def test_pickled_and_damaged(small: tuple[Path, Path]) -> None:
    _, made = small
    weights = made / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="ends before"):
        Adapter.read(made)
    weights.rename(made / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors, and pickled"):
        Adapter.read(made)
    (made / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="is damaged"):
        Adapter.read(made)
