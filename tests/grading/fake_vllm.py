"""What the vLLM sampler asks of vLLM, played from a script: counting, stopping and drawing again without the engine."""

import sys
import types

from sftknow.grading.decoding import decoder_for


class Params(types.SimpleNamespace):
    """vLLM's SamplingParams, as far as it is looked at."""


class FakeEngine:
    """Continues every prompt by given texts, and ends a sample at a stop string as vLLM does."""

    def __init__(self, tokenizer, texts):
        self.tokenizer, self.decoder = tokenizer, decoder_for(tokenizer)
        self.texts = texts
        self.asked = []

    async def generate(self, prompt, params, request_id):
        self.asked.append((prompt["prompt_token_ids"], params, request_id))
        yield types.SimpleNamespace(outputs=[self.completion(i, params) for i in reversed(range(params.n))])

    def completion(self, index, params):
        ids = self.tokenizer(self.texts[index], add_special_tokens=False)["input_ids"] + [params.stop_token_ids[0]]
        for end in range(1, len(ids)):
            text = self.decoder.whole([ids[:end]])[0]
            found = [stop for stop in params.stop or [] if stop in text]
            if found:
                return types.SimpleNamespace(index=index, token_ids=ids[:end], stop_reason=found[0])
        return types.SimpleNamespace(index=index, token_ids=ids, stop_reason=ids[-1])


def install(monkeypatch):
    """Make `import vllm` find what the sampler's drawing needs."""
    vllm = types.ModuleType("vllm")
    vllm.SamplingParams = Params
    params = types.ModuleType("vllm.sampling_params")
    params.RequestOutputKind = types.SimpleNamespace(FINAL_ONLY="final")
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
