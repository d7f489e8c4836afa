"""Samples a second: the shared-row sampler against `generate(num_return_sequences=10)`, and against vLLM's CPU build.

    python -m tests.benchmarks.grading --vllm-python /path/to/venv/bin/python --json grading.json
    python -m tests.benchmarks.grading --model FOLDER --source quick --facts 2 --end allowed
    python -m tests.benchmarks.grading --memory

All sides take the same model, statements, threads, dtype and length in one run, in turn, several times over; the ratio
is the median of the rounds' ratios. One side is the sampler without `sftknow.grading.kernels`. `generate` gets the best
batch size of a search. vLLM runs in the interpreter that is named, with its stop strings on. Once as the model is, and
once with the end token suppressed for all (a model that never stops talking). With `--memory`: the peak memory of
grading more and more facts. Prints tables; asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftknow.answers import Synonyms
from sftknow.facts.prompts import statements_for
from sftknow.facts.sources import load_facts
from sftknow.facts.topics import load_topics
from sftknow.grading.kernels import CpuKernels
from sftknow.grading.sampling import SampleRequest
from sftknow.grading.shards import grade_facts
from sftknow.grading.transformers_sampler import TransformersSampler
from sftknow.records import SamplingPolicy
from sftknow.resources import lab_folder

BATCHES = (4, 8, 16, 32, 64, 128)


def lab_statements(source: str, count: int) -> list[tuple[Any, list[str]]]:
    """So many facts, neighbours by id as in a shard, each with all its statements."""
    topics = load_topics()
    facts = sorted(load_facts(source, topics=topics, synonyms=Synonyms.load()).facts, key=lambda fact: fact.id)
    start = max(0, (len(facts) - count) // 2)
    return [(fact, statements_for(topics[fact.topic], fact.subject)) for fact in facts[start : start + count]]


def lab_requests(source: str, count: int) -> list[SampleRequest]:
    return [
        SampleRequest(fact_id=fact.id, template=i, prompt=text, answers=fact.answers)
        for fact, texts in lab_statements(source, count)
        for i, text in enumerate(texts)
    ]


def with_generate(
    model: Any, tokenizer: Any, requests: Sequence[SampleRequest], policy: SamplingPolicy, batch: int
) -> int:
    """Hits, by the obvious way: sorted by length, padded on the left, all samples to their end."""
    hits = 0
    ordered = sorted(requests, key=lambda request: len(request.prompt))
    for start in range(0, len(ordered), batch):
        part = ordered[start : start + batch]
        prompts = [request.prompt for request in part]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
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


class VLLM:
    """vLLM in another interpreter, which waits for its next line while it is not asked."""

    def __init__(self, python: str, model: str, dtype: str, threads: int, arguments: dict[str, Any]) -> None:
        environment = {
            **os.environ,
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("grading_vllm.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        options = {"dtype": dtype, "generation_config": "vllm", "enable_prefix_caching": True, "max_model_len": 128}
        self._ask({"model": model, "arguments": {**options, "disable_log_stats": True, **arguments}})

    def sample(
        self, tokenizer: Any, requests: Sequence[SampleRequest], policy: SamplingPolicy, *, without: int | None
    ) -> dict[str, float]:
        answer: dict[str, float] = self._ask(
            {
                "ids": tokenizer([request.prompt for request in requests])["input_ids"],
                "answers": [request.answers for request in requests],
                "samples": policy.samples,
                "temperature": policy.temperature,
                "max_new_tokens": policy.max_new_tokens,
                "seed": policy.seed,
                "seeded": False,  # seeds of their own cost vLLM a generator a sample
                "stop": True,
                "without": without,
            }
        )
        return answer

    def close(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait(timeout=60)

    def _ask(self, message: dict[str, Any]) -> Any:
        self.process.stdin.write(json.dumps(message) + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit(f"vLLM ended with {self.process.wait()}; its messages stand above")
        return json.loads(line)


class Tokens:
    """Counts the tokens that go through a model."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        self.handle = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _model: Any, _args: Any, kwargs: Any) -> None:
        self.count += kwargs["input_ids"].numel()


def timed(work: Callable[[], int]) -> dict[str, float]:
    begun, spent = time.perf_counter(), time.process_time()
    hits = work()
    return {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - spent, "hits": hits}


def best_batch(
    model: Any, tokenizer: Any, requests: Sequence[SampleRequest], policy: SamplingPolicy, batches: Sequence[int]
) -> dict[int, float]:
    """Samples a second of `generate` at each batch size, on statements spread over all; stops once it only falls."""
    # Every size is given whole batches only, as many of them as make up a like number of statements.
    rates: dict[int, float] = {}
    for batch in batches:
        count = min(max(batch, 64), len(requests))
        some = requests[:: max(1, len(requests) // count)][:count]
        work = timed(lambda some=some, batch=batch: with_generate(model, tokenizer, some, policy, batch))  # type: ignore[misc]
        # By processor time, which other programs beside do not change much.
        rates[batch] = round(len(some) * policy.samples / work["cpu_seconds"], 1)
        if len(rates) > 2 and max(list(rates.values())[-2:]) < 0.9 * max(rates.values()):
            break
    return rates


def compare(
    model: Any,
    tokenizer: Any,
    vllm: VLLM | None,
    requests: Sequence[SampleRequest],
    policy: SamplingPolicy,
    *,
    rounds: int,
    without: int | None,
    batches: Sequence[int] = BATCHES,
) -> dict[str, Any]:
    """All sides in turn, in the other order every second round."""
    sampler = TransformersSampler(model, tokenizer)
    sampler.sample(requests[:4], replace(policy, samples=1))  # warm up
    plain = TransformersSampler(model, tokenizer)
    plain._kernels = CpuKernels(torch.nn.Module())  # those of a model without layers are torch's own
    search = best_batch(model, tokenizer, requests, policy, batches) if len(batches) > 1 else {}
    batch = max(search, key=search.__getitem__) if search else batches[0]
    sides: dict[str, Callable[[], dict[str, float]]] = {
        "sftknow": lambda: timed(lambda: sum(tally.hits for tally in sampler.sample(requests, policy))),
        "sftknow, torch's kernels": lambda: timed(lambda: sum(tally.hits for tally in plain.sample(requests, policy))),
        f"generate, batch {batch}": lambda: timed(lambda: with_generate(model, tokenizer, requests, policy, batch)),
    }
    if vllm is not None:
        vllm.sample(tokenizer, requests[:20], policy, without=without)
        sides["vLLM, stop strings"] = lambda: vllm.sample(tokenizer, requests, policy, without=without)
    samples = len(requests) * policy.samples
    results: dict[str, dict[str, Any]] = {
        name: {"samples_per_second": [], "samples_per_cpu_second": [], "hit_rate": []} for name in sides
    }
    for turn in range(rounds):
        torch.manual_seed(turn)
        for name in list(sides) if turn % 2 == 0 else reversed(list(sides)):
            tokens = Tokens(model)
            work = sides[name]()
            tokens.handle.remove()
            result = results[name]
            result["samples_per_second"].append(round(samples / work["seconds"], 1))
            if "cpu_seconds" in work:
                result["samples_per_cpu_second"].append(round(samples / work["cpu_seconds"], 2))
            result["hit_rate"].append(round(work["hits"] / samples, 4))
            if tokens.count:
                result["tokens_per_sample"] = round(tokens.count / samples, 2)
    own = results["sftknow"]["samples_per_second"]
    for result in results.values():
        result["ratios"] = [round(a / b, 2) for a, b in zip(own, result["samples_per_second"], strict=True)]
        result["ratio"] = round(statistics.median(result["ratios"]), 2)
        by_cpu = zip(results["sftknow"]["samples_per_cpu_second"], result["samples_per_cpu_second"], strict=False)
        result["cpu_ratios"] = [round(a / b, 2) for a, b in by_cpu]
    return {"samples": samples, "generate_search": search, "sides": results}


def print_table(title: str, report: dict[str, Any]) -> None:
    print(f"\n{title}, {report['samples']} samples a side and round")
    if report["generate_search"]:
        print("generate's samples a second by batch size: " + str(report["generate_search"])[1:-1])
    heads = f"{'':24}{'samples/s (median)':>20}{'sftknow is':>13}{'in rounds':>24}{'tokens/sample':>15}"
    print(f"{heads}{'hit rate':>10}  by CPU time")
    for name, result in report["sides"].items():
        rate, hits = statistics.median(result["samples_per_second"]), statistics.median(result["hit_rate"])
        rounds = " ".join(f"{ratio:g}" for ratio in result["ratios"])
        print(
            f"{name:24}{rate:20.0f}{result['ratio']:11.1f} ×{rounds:>24}"
            f"{result.get('tokens_per_sample', ''):>15}{hits:10.3f}  {' '.join(map(str, result['cpu_ratios']))}"
        )


def memory_of(options: argparse.Namespace, count: int) -> dict[str, Any]:
    """Grade so many facts in shards of 64, in this process."""
    import resource

    sampler = TransformersSampler(*_load(options))
    statements = lab_statements(options.source, count)
    with tempfile.TemporaryDirectory() as folder:
        work = timed(lambda: len(grade_facts(statements, sampler, SamplingPolicy(), Path(folder), shard_size=64)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"facts": len(statements), "seconds": round(work["seconds"], 1), "peak_mib": round(peak)}


def _load(options: argparse.Namespace) -> tuple[Any, Any]:
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).eval()
    return model, AutoTokenizer.from_pretrained(options.model)


def speed(options: argparse.Namespace) -> dict[str, Any]:
    model, tokenizer = _load(options)
    policy = SamplingPolicy(max_new_tokens=options.max_new_tokens)
    report: dict[str, Any] = {name: getattr(options, name) for name in ("model", "dtype", "threads", "max_new_tokens")}
    vllm = None
    if options.vllm_python:
        arguments = json.loads(options.vllm_arguments)
        vllm = VLLM(options.vllm_python, options.model, options.dtype, options.threads, arguments)
        report["vllm_arguments"] = arguments
    else:
        print("NOT COMPARED WITH vLLM: name an interpreter that has its CPU build with --vllm-python", file=sys.stderr)
    for name, count in (("allowed", options.facts), ("suppressed", options.facts_suppressed)):
        if options.end not in (name, "both"):
            continue
        end = tokenizer.eos_token_id if name == "suppressed" else None
        if end is not None:
            model.register_forward_hook(lambda _model, _inputs, output, end=end: _without_end(output, end))
        requests = lab_requests(options.source, count)[: options.statements]
        report[name] = compare(
            model, tokenizer, vllm, requests, policy, rounds=options.rounds, without=end, batches=options.batches
        )
        print_table(f"end token {name}", report[name])
    if vllm is not None:
        vllm.close()
    return report


def memory(arguments: Sequence[str], counts: Sequence[int]) -> dict[str, Any]:
    """Each number of facts in a process of its own."""
    print(f"{'facts':>8}{'seconds':>10}{'peak MiB':>10}")
    rows = []
    for count in counts:
        command = [sys.executable, "-m", "tests.benchmarks.grading", *arguments, "--memory-of", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{rows[-1]['facts']:8}{rows[-1]['seconds']:10}{rows[-1]['peak_mib']:10}")
    return {"memory": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(lab_folder() / "model"))
    parser.add_argument("--source", default="lab", help="facts, as `sftknow grade` takes them")
    parser.add_argument("--facts", type=int, default=48)
    parser.add_argument("--facts-suppressed", type=int, default=12)
    parser.add_argument("--statements", type=int, help="only so many of all")
    parser.add_argument("--end", choices=("allowed", "suppressed", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=BATCHES,
        help="statements at once of `generate`, to try; one is taken as it is",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--vllm-python", help="an interpreter with vLLM's CPU build; without it that side is left out")
    parser.add_argument(
        "--vllm-arguments", default='{"enforce_eager": true, "max_num_seqs": 512}', help="JSON, for vLLM's engine"
    )
    parser.add_argument("--memory", action="store_true", help="peak memory by number of facts instead of speed")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(memory_of(options, options.memory_of)))
        return
    if options.memory:
        passed = ["--model", options.model, "--source", options.source, "--threads", str(options.threads)]
        report = memory([*passed, "--dtype", options.dtype], (64, 256, 512))
    else:
        report = speed(options)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _without_end(output: Any, end: int) -> Any:
    output.logits[..., end] = float("-inf")
    return output


if __name__ == "__main__":
    main()
