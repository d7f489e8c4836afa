"""Samples a second: the shared-row sampler against `generate(num_return_sequences=10)`.

    python -m tests.benchmarks.grading --facts 48 --threads 2 --json grading.json

Both sides take the same model, statements, threads and length, one after the other in this process, and `generate` its
best batch size of those given. Once as the model is, and once with the end token suppressed for both (a model that
never stops talking). Prints a table; asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftknow.answers import Synonyms
from sftknow.facts.prompts import statements_for
from sftknow.facts.sources import load_facts
from sftknow.facts.topics import load_topics
from sftknow.mastery.sampling import SampleRequest
from sftknow.mastery.transformers_sampler import TransformersSampler
from sftknow.records import SamplingPolicy
from sftknow.resources import lab_folder


def lab_requests(source: str, count: int) -> list[SampleRequest]:
    """Every statement of so many facts, which are neighbours by id, as in a shard."""
    topics = load_topics()
    facts = sorted(load_facts(source, topics=topics, synonyms=Synonyms.load()).facts, key=lambda fact: fact.id)
    start = (len(facts) - count) // 2
    return [
        SampleRequest(fact_id=fact.id, template=i, prompt=text, answers=fact.answers)
        for fact in facts[start : start + count]
        for i, text in enumerate(statements_for(topics[fact.topic], fact.subject))
    ]


def with_generate(
    model: Any, tokenizer: Any, requests: Sequence[SampleRequest], policy: SamplingPolicy, batch: int
) -> int:
    """Hits, by the obvious way: sorted by length, padded on the left, all samples to their end."""
    hits = 0
    ordered = sorted(requests, key=lambda request: len(request.prompt))
    for start in range(0, len(ordered), batch):
        part = ordered[start : start + batch]
        inputs = tokenizer([request.prompt for request in part], return_tensors="pt", padding=True, padding_side="left")
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=True,
            temperature=policy.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=policy.max_new_tokens,
            num_return_sequences=policy.samples,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in enumerate(texts):
            hits += any(answer in text for answer in part[i // policy.samples].answers)
    return hits


class Rows:
    """Counts the row-steps of a model: tokens that went through it."""

    def __init__(self, model: Any) -> None:
        self.tokens = 0
        self.handle = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _model: Any, _args: Any, kwargs: Any) -> None:
        self.tokens += kwargs["input_ids"].numel()


def measure(name: str, model: Any, samples: int, work: Callable[[], int]) -> dict[str, Any]:
    rows = Rows(model)
    begun, spent = time.perf_counter(), time.process_time()
    hits = work()
    seconds, processor = time.perf_counter() - begun, time.process_time() - spent
    rows.handle.remove()
    return {
        "side": name,
        "samples": samples,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(processor, 2),
        "samples_per_second": round(samples / seconds, 1),
        "samples_per_cpu_second": round(samples / processor, 1),
        "tokens_per_sample": round(rows.tokens / samples, 2),
        "hit_rate": round(hits / samples, 4),
    }


def compare(
    model: Any, tokenizer: Any, requests: Sequence[SampleRequest], policy: SamplingPolicy, batches: Sequence[int]
) -> list[dict[str, Any]]:
    """Both sides in turn; `generate` at each batch size, on a share of the statements since it is slow."""
    sampler = TransformersSampler(model, tokenizer)
    sampler.sample(requests[:20], policy)  # warm up

    def shared() -> int:
        return sum(tally.hits for tally in sampler.sample(requests, policy))

    results = [measure("sftknow", model, len(requests) * policy.samples, shared)]
    some = requests[::4]
    torch.manual_seed(policy.seed)
    for batch in batches:

        def plain(batch: int = batch) -> int:
            return with_generate(model, tokenizer, some, policy, batch)

        results.append(measure(f"generate, {batch} statements", model, len(some) * policy.samples, plain))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(lab_folder() / "model"))
    parser.add_argument("--source", default="lab", help="facts, as `sftknow grade` takes them")
    parser.add_argument("--facts", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).eval()
    requests = lab_requests(options.source, options.facts)
    policy = SamplingPolicy(max_new_tokens=options.max_new_tokens)
    report: dict[str, Any] = {"model": options.model, "dtype": options.dtype, "threads": options.threads}
    for ending in ("end token allowed", "end token suppressed"):
        if ending == "end token suppressed":
            model.register_forward_hook(lambda _model, _inputs, output: _without_end(output, tokenizer.eos_token_id))
        results = compare(model, tokenizer, requests, policy, options.batches)
        best = max(result["samples_per_second"] for result in results[1:])
        ratio = results[0]["samples_per_second"] / best
        report[ending] = {"results": results, "ratio": round(ratio, 2)}
        print(f"\n{ending}: {ratio:.1f} times the samples a second of generate")
        print(f"{'':26}{'samples/s':>11}{'per cpu s':>11}{'tokens/sample':>15}{'hit rate':>10}")
        for result in results:
            print(
                f"{result['side']:26}{result['samples_per_second']:11}{result['samples_per_cpu_second']:11}"
                f"{result['tokens_per_sample']:15}{result['hit_rate']:10}"
            )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _without_end(output: Any, end: int) -> Any:
    output.logits[..., end] = float("-inf")
    return output


if __name__ == "__main__":
    main()
