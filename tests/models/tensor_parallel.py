"""What `test_tensor_parallel` starts in two processes: grading and evaluation by a model that each holds half of.

torchrun --nproc_per_node 2 tests/models/tensor_parallel.py MODEL DATASET OUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sftknow.artifacts.files import write_json
from sftknow.evaluation.harness import Harness
from sftknow.grading.sampling import SampleRequest
from sftknow.grading.transformers_sampler import TransformersSampler
from sftknow.models.loading import load_tokenizer
from sftknow.records import ModelRef, SamplingPolicy
from tests.tiny import tiny_facts


def graded_and_scored(model: Any, folder: Path, dataset: Path) -> dict[str, Any]:
    """Hits of some statements, and every score on a data set."""
    tokenizer = load_tokenizer(ModelRef(path=str(folder)))
    facts = tiny_facts(6)
    asked = [SampleRequest(fact_id=f.id, template=0, prompt=f.question, answers=("e",)) for f in facts]
    policy = SamplingPolicy(samples=4, max_new_tokens=8)
    hits = [tally.hits for tally in TransformersSampler(model, tokenizer).sample(asked, policy)]
    scores = Harness(dataset, device="cpu").score(model, tokenizer, name="m").metrics
    return {"hits": hits, "scores": [[score.task, score.metric, score.value] for score in scores]}


def main() -> None:
    folder, dataset, out = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto", dtype="auto").eval()
    attention = model.model.layers[0].self_attn
    kept = attention.q_proj.weight.to_local().numel() / attention.q_proj.weight.numel()
    found = graded_and_scored(model, folder, dataset)
    write_json(out / f"{os.environ['RANK']}.json", {**found, "kept": kept})


if __name__ == "__main__":
    main()
