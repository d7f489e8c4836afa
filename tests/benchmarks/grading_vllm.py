"""The vLLM side of `tests.benchmarks.grading`, run by an interpreter that has vLLM: JSON lines in, JSON lines out.

The first line names the model and the engine's arguments; every further one is statements to continue, answered by
seconds and hits. Only vLLM's own interface is used, the fastest one that it has for many prompts at once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints to standard output
    setup = json.loads(sys.stdin.readline())

    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(setup["model"], **setup["arguments"])

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    say({"ready": True})
    for line in sys.stdin:
        work = json.loads(line)
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in work["ids"]]
        params = [
            SamplingParams(
                n=work["samples"],
                temperature=work["temperature"],
                max_tokens=work["max_new_tokens"],
                seed=work["seed"] + i if work["seeded"] else None,
                stop=names if work["stop"] else None,
                include_stop_str_in_output=True,
                logit_bias={work["without"]: -100.0} if work["without"] is not None else None,
            )
            for i, names in enumerate(work["answers"])
        ]
        begun = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        hits = sum(
            any(name in completion.text for name in names)
            for output, names in zip(outputs, work["answers"], strict=True)
            for completion in output.outputs
        )
        say({"seconds": time.perf_counter() - begun, "hits": hits})


if __name__ == "__main__":
    main()
