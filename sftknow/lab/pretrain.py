"""Train a tokenizer and a small Llama from text, from nothing, on a CPU in minutes.

The order of documents, the initial weights and so the result depend on the seed, the text and the machine. Training
saves its state now and then and goes on from there after a kill, as if nothing had happened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sftknow.artifacts.files import atomic_file, atomic_folder, digest, readable
from sftknow.artifacts.keyed_folder import clear, ready_folder
from sftknow.artifacts.manifests import write_manifest
from sftknow.models.loading import name_dtype
from sftknow.progress import progress

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Shape of the model and of its training."""

    vocabulary: int = 4096
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp_width: int = 640
    positions: int = 256
    batch_documents: int = 16
    """Small on purpose: with the same text, batches of 128 brought true facts seen more than 50 times to a mean R of
    0.28, batches of 32 to 0.73."""
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    epochs: int = 1
    save_dtype: str = "bfloat16"
    save_every: int = 1000
    """Steps between two saves of the training state."""
    seed: int = 0


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """A byte-level BPE that adds BOS by itself, as Llama's tokenizers do.

    Args:
        texts: what to learn the merges from.
        vocabulary: number of tokens, the three special ones and 256 bytes included.

    Returns:
        a ``PreTrainedTokenizerFast``.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left"
    )


def _model(config: PretrainConfig, tokenizer: Any) -> Any:
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.positions,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _encode(texts: Sequence[str], tokenizer: Any) -> list[npt.NDArray[np.int32]]:
    encoded = tokenizer.backend_tokenizer.encode_batch(list(texts))
    return [np.array([*e.ids, tokenizer.eos_token_id], dtype=np.int32) for e in encoded]


def _batches(lengths: npt.NDArray[np.int64], config: PretrainConfig, epoch: int) -> list[npt.NDArray[np.int64]]:
    """Batches of documents of similar length, in random order: little padding, no fixed curriculum."""
    draw = np.random.default_rng([config.seed, epoch])
    order = draw.permutation(len(lengths))
    # Sorting within large windows of the random order keeps the documents of a batch random as well.
    window = 50 * config.batch_documents
    batches = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + config.batch_documents] for i in range(0, len(part), config.batch_documents)]
    return [batches[i] for i in draw.permutation(len(batches))]


def _rate(step: int, steps: int, config: PretrainConfig) -> float:
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def pretrain(
    texts: Sequence[str], out: Path, *, config: PretrainConfig, manifest: Mapping[str, Any] | None = None
) -> Path:
    """Train tokenizer and model, save them as a checkpoint, return its folder.

    Args:
        texts: the documents, one training sequence each.
        out: where the checkpoint goes, whole or not at all; the state of a training under way lies beside it.
        config: shape and training.
        manifest: what to note in the checkpoint's ``sftknow.json`` besides the configuration.
    """
    tokenizer = train_tokenizer(texts, config.vocabulary)
    documents = _encode(texts, tokenizer)
    lengths = np.array([len(d) for d in documents])
    if lengths.max() > config.positions:
        documents = [d[: config.positions] for d in documents]
        lengths = np.minimum(lengths, config.positions)
    plan = [batch for epoch in range(config.epochs) for batch in _batches(lengths, config, epoch)]
    model = _model(config, tokenizer)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=True,
    )
    work = out.with_name(f".{out.name}.training")
    ready_folder(work, digest([asdict(config), digest(list(texts))]))
    state = work / "state.pt"
    step = 0
    if state.is_file():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    model.train()
    with progress(len(plan), "pretraining", unit="steps", done=step) as bar:
        while step < len(plan):
            for group in optimizer.param_groups:
                group["lr"] = _rate(step, len(plan), config)
            loss = training_step(model, optimizer, [documents[i] for i in plan[step]], tokenizer.pad_token_id)
            step += 1
            bar.update()
            if step % 20 == 0:
                bar.set_postfix_str(f"loss {loss:.3f}")
            if step % config.save_every == 0 and step < len(plan):
                with atomic_file(state) as partial:
                    torch.save(
                        {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, partial
                    )
    with atomic_folder(out) as partial:
        model.to(getattr(torch, config.save_dtype)).save_pretrained(partial)
        name_dtype(partial, "float32")  # halves the file; the arithmetic stays that of the training
        tokenizer.save_pretrained(partial)
        readable(partial, "config.json")
        write_manifest(partial, "model", {**(manifest or {}), "pretraining": {**asdict(config), "steps": step}})
    clear(work)
    return out


def training_step(model: Any, optimizer: Any, batch: Sequence[npt.NDArray[np.int32]], pad: int) -> float:
    """One update on a batch of documents (token ids, each of any length); returns its loss in nats a token."""
    longest = max(len(d) for d in batch)
    ids = torch.full((len(batch), longest), pad, dtype=torch.long)
    for row, document in enumerate(batch):
        ids[row, : len(document)] = torch.from_numpy(document)
    mask = ids != pad
    # Right padding under a causal mask needs no attention mask: no real token can see the padding behind it.
    logits = model(input_ids=ids[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits[mask[:, 1:]].float(), ids[:, 1:][mask[:, 1:]])
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())
