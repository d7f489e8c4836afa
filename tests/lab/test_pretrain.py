from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sftknow.lab.pretrain as pretrain_module
from sftknow.artifacts.manifests import read_manifest
from sftknow.lab.pretrain import PretrainConfig, pretrain, train_tokenizer

CONFIG = PretrainConfig(
    vocabulary=300, width=16, layers=1, heads=2, kv_heads=1, mlp_width=32, batch_documents=4, warmup_steps=2,
    save_every=3, positions=64,
)  # fmt: skip
TEXTS = [f"The capital of Land {i} is Town {i % 5}." for i in range(40)]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_tokenizer_adds_one_bos_and_gives_the_text_back() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    ids = tokenizer("Straße 5 – 東京")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Straße 5 – 東京"


def test_same_seed_same_bytes_and_the_loss_falls(tmp_path: Path) -> None:
    first = pretrain(TEXTS, tmp_path / "a", config=CONFIG)
    second = pretrain(TEXTS, tmp_path / "b", config=CONFIG)
    assert weights(first) == weights(second)
    assert weights(pretrain(TEXTS, tmp_path / "c", config=replace(CONFIG, seed=1))) != weights(first)
    manifest = read_manifest(first, "model")
    assert manifest is not None
    assert manifest["pretraining"]["steps"] == 10
    trained = pretrain(TEXTS, tmp_path / "d", config=replace(CONFIG, epochs=20, learning_rate=1e-2))
    assert loss(trained) < loss(first) - 1.0


def loss(folder: Path) -> float:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    return float(model(input_ids=ids, labels=ids).loss.detach())


def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = pretrain(TEXTS, tmp_path / "a", config=CONFIG)
    steps = 0
    real = pretrain_module.training_step

    def killed_at_the_eighth(*arguments: object) -> float:
        nonlocal steps
        steps += 1
        if steps == 8:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(pretrain_module, "training_step", killed_at_the_eighth)
    with pytest.raises(KeyboardInterrupt):
        pretrain(TEXTS, tmp_path / "b", config=CONFIG)
    assert not (tmp_path / "b").exists(), "nothing half-written looks finished"
    pretrain(TEXTS, tmp_path / "b", config=CONFIG)
    # 7 steps before the kill, 4 after it: the state saved at step 6 was used.
    assert steps == 8 + 4
    assert weights(tmp_path / "b") == weights(undisturbed)
    assert not list(tmp_path.glob(".b*"))
