"""Token divergence of a grid against the plain way, as a ratio of seconds.

    python -m tests.benchmarks.divergence                      # random models made in code, GPT-2's vocabulary size
    python -m tests.benchmarks.divergence --base BASE --tuned A B C --mastery DATASET

Ours: the base completes and is measured once, the output head runs at one position a prompt. The plain way: for every
fine-tuned model both models run anew, with logits at every position and the base's completions from `generate`.
Both give the same mean; the script stops if they do not.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models as models_of_tokenizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sftknow.answers import DEFAULT_RULE
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.divergence.analysis import Selection, load_for_logits, measure_base, measure_divergence, select_prompts
from sftknow.divergence.base import starts_near
from sftknow.divergence.kl import top_k_divergence
from sftknow.facts.topics import load_topics
from sftknow.records import Fact, ModelRef
from tests.tiny import graded

WINDOW = 3


def made_in_code(facts: int, models: int, vocabulary: int) -> tuple[Any, list[Any], Any, Selection]:
    """A random base with that vocabulary, moved copies of it, and facts that it "knows": any word is accepted."""
    words = {"<unk>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, vocabulary)}}
    raw = Tokenizer(models_of_tokenizers.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=128,
        eos_token_id=None,
    )
    base = LlamaForCausalLM(config).eval()
    tuned = []
    for _ in range(models):
        moved = copy.deepcopy(base)
        with torch.no_grad():
            for parameter in moved.model.layers.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
        tuned.append(moved)
    # Statements of 9 to 20 words, which is what statements come to in tokens.
    statements = {"P36": ("{subject} w101 w102 w103 w104 w105 w106 w107",)}
    rows = []
    for n in range(facts):
        subject = " ".join(f"w{200 + n + i}" for i in range(2 + n % 12))
        fact = Fact(id=f"P36/test/{n}", topic="P36", subject=subject, object="w", question="", split="test")
        rows.append(graded(fact, 4, templates=1))
    return base, tuned, tokenizer, select_prompts(rows, statements)


def plain(base: Any, tuned: Any, tokenizer: Any, selection: Selection, batch_size: int) -> float:
    """Mean KL of one pair: all logits of both models, right padding, nothing kept from one pair to the next."""
    total, count = 0.0, 0
    pad = tokenizer.eos_token_id
    for at in range(0, len(selection.choices), batch_size):
        choices = selection.choices[at : at + batch_size]
        ids = [tokenizer(choice.statement)["input_ids"] for choice in choices]
        width = max(map(len, ids))
        left = torch.tensor([[pad] * (width - len(i)) + i for i in ids], device=base.device)
        left_mask = torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i in ids], device=base.device)
        limits = [
            WINDOW + max(len(tokenizer(f" {a}", add_special_tokens=False)["input_ids"]) for a in choice.fact.answers)
            for choice in choices
        ]
        with torch.inference_mode():
            new = base.generate(
                left,
                attention_mask=left_mask,
                do_sample=False,
                max_new_tokens=max(limits),
                pad_token_id=pad,
            )[:, width:]
            near = [
                starts_near(
                    tokenizer.decode(row[:limit], skip_special_tokens=True),
                    tokenizer.decode(row[:WINDOW], skip_special_tokens=True),
                    choice.fact.answers,
                    DEFAULT_RULE,
                )
                for row, limit, choice in zip(new, limits, choices, strict=True)
            ]
            right = torch.tensor([i + [pad] * (width - len(i)) for i in ids], device=base.device)
            mask = torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i in ids], device=base.device)
            base_logits, tuned_logits = (m(input_ids=right, attention_mask=mask).logits for m in (base, tuned))
        for row, keep in enumerate(near):
            if keep:
                last = len(ids[row]) - 1
                kl = top_k_divergence(tuned_logits[row, last][None].cpu(), base_logits[row, last][None].cpu()).kl_n
                total, count = total + kl.item(), count + 1
    return total / count


def seconds(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall-clock seconds, CPU seconds (the steadier of the two on a busy machine), and what came out."""
    began, worked = time.perf_counter(), time.process_time()
    out = work()
    return time.perf_counter() - began, time.process_time() - worked, out


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base")
    parser.add_argument("--tuned", nargs="*", default=[])
    parser.add_argument("--mastery", type=Path)
    parser.add_argument("--facts", type=int, default=96, help="facts, where the models are made in code")
    parser.add_argument("--models", type=int, default=12, help="fine-tuned models, where they are made in code")
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--batch-size", type=int, default=64)
    given = parser.parse_args(arguments)
    if given.base:
        base, tokenizer = load_for_logits(ModelRef.parse(given.base))
        tuned = [load_for_logits(ModelRef.parse(path))[0] for path in given.tuned]
        statements = {name: topic.templates for name, topic in load_topics().items()}
        selection = select_prompts(MasteryData(given.mastery).bucket("test", 4), statements)
    else:
        base, tuned, tokenizer, selection = made_in_code(given.facts, given.models, given.vocabulary)

    def ours() -> list[float]:
        view = measure_base(base, tokenizer, selection, window=WINDOW, batch_size=given.batch_size)
        return [measure_divergence(view, model, tokenizer).summary.mean for model in tuned]

    our_seconds, our_cpu, our_means = seconds(ours)
    plain_seconds, plain_cpu, plain_means = seconds(
        lambda: [plain(base, model, tokenizer, selection, given.batch_size) for model in tuned]
    )
    if any(abs(a - b) > 1e-5 for a, b in zip(our_means, plain_means, strict=True)):
        raise SystemExit(f"the two ways disagree: {our_means} and {plain_means}")
    print(
        json.dumps(
            {
                "models": len(tuned),
                "facts": len(selection.choices),
                "vocabulary": base.config.vocab_size,
                "our_seconds": round(our_seconds, 3),
                "plain_seconds": round(plain_seconds, 3),
                "times_faster": round(plain_seconds / our_seconds, 2),
                "times_less_cpu": round(plain_cpu / our_cpu, 2),
                "means": our_means,
            }
        )
    )


if __name__ == "__main__":
    main()
