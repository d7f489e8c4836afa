"""Small things made in code: a tokenizer, a random Llama, facts, a graded data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sftknow.artifacts.mastery_data import write_mastery_data
from sftknow.records import BUCKETS, SPLITS, Fact, GradedFact, Mastery, Split
from sftknow.resources import lab_folder

PLACES = ("Arden", "Belmora", "Cestria", "Dunholm", "Eskaby", "Ferrol", "Gondar", "Halmstad")


def tiny_facts(count: int, *, split: Split = "train", topics: Sequence[str] = ("P17", "P36")) -> list[Fact]:
    """Facts with unique subjects, in turn from each topic."""
    facts = []
    for i in range(count):
        topic = topics[i % len(topics)]
        subject = f"{PLACES[i % len(PLACES)]} {i}"
        question = f"What is the capital of {subject}?" if topic == "P36" else f"Which country is {subject} located in?"
        facts.append(
            Fact(
                id=f"{topic}/{split}/{i}",
                topic=topic,
                subject=subject,
                object=PLACES[(3 * i + 1) % len(PLACES)],
                question=question,
                split=split,
            )
        )
    return facts


def tiny_tokenizer(texts: Sequence[str] = (), folder: Path | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 384 tokens whose post-processor adds BOS ``<s>``; EOS is ``</s>``, padding ``<pad>``."""
    corpus = [*texts, *(f.question for f in tiny_facts(64)), *PLACES, "<|question|> <|answer|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )
    if folder is not None:
        fast.save_pretrained(folder)
    return fast


def tiny_llama(
    folder: Path, tokenizer: Any, *, layers: int = 2, width: int = 32, seed: int = 0, dtype: str = "float32"
) -> Path:
    """Save a random Llama and the tokenizer as a checkpoint; return its folder."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def graded(fact: Fact, bucket: int, *, templates: int = 21, samples: int = 10) -> GradedFact:
    """The fact with tallies that put it into the bucket."""
    per_template = {0: 0, 1: 2, 2: 4, 3: 7, 4: 10}[bucket] * samples // 10
    hits = per_template * templates
    mastery = Mastery(
        fact_id=fact.id,
        template_hits=(per_template,) * templates,
        template_tries=(samples,) * templates,
        hits=hits,
        tries=templates * samples,
        bucket=bucket,
        low=0.0,
        high=1.0,
        edge=False,
    )
    return GradedFact(fact=fact, mastery=mastery)


def tiny_mastery_data(
    folder: Path, *, per_bucket: int = 4, graded_by: str = "tiny", aliases: tuple[str, ...] = ()
) -> Path:
    """Write a graded data set with that many facts in every bucket of every split; return its folder."""
    rows = []
    for split in SPLITS:
        topics = ("P112", "P127") if split == "testood" else ("P17", "P36")
        facts = tiny_facts(per_bucket * len(BUCKETS), split=split, topics=topics)
        rows += [graded(replace(fact, aliases=aliases), i // per_bucket) for i, fact in enumerate(facts)]
    write_mastery_data(folder, rows, {"graded_by": graded_by, "policy": {"samples": 10, "temperature": 0.7}})
    return folder


def noisy_lab(folder: Path, strength: float) -> Path:
    """The lab's model with so many standard deviations of noise on each of its weights."""
    model = AutoModelForCausalLM.from_pretrained(lab_folder() / "model", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += strength * weight.std() * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(lab_folder() / "model").save_pretrained(folder)
    return folder
