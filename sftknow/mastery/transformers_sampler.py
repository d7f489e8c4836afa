"""Sampling with transformers, where samples that agree so far are computed once.

A statement is run once for all its samples. Samples whose tokens so far are equal share a row; each draws its next
token with its own random number, so that the row's samples are a multinomial draw, and the row splits where they
differ. A row that contains an answer counts all its samples as hits and leaves, as does a row that ends.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sftknow.answers import MatchRule
from sftknow.errors import FactsError, ModelError, RecipeError
from sftknow.mastery.batch import Batch, Ints
from sftknow.mastery.decoding import decoder_for
from sftknow.mastery.sampling import SampleRequest
from sftknow.mastery.slot_cache import SlotCache
from sftknow.records import ModelRef, SampleTally, SamplingPolicy
from sftknow.storage.models import load_model, load_tokenizer

_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}


class TransformersSampler:
    """Samples continuations from any causal language model of transformers with a plain key-value cache.

    Args:
        model: a loaded causal language model, on its device and in its dtype; put into evaluation mode.
        tokenizer: its tokenizer. Statements get its own special tokens, save an end token at the end.
        max_rows: most samples alive at once, and so an upper bound on the rows of a batch. None chooses: 2,048 on a
            CPU, and on a GPU what half of its free memory holds.
        rule: how answers are compared.

    Raises:
        ModelError: some layers keep something else than keys and values, as state-space layers do.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, max_rows: int | None = None, rule: MatchRule | None = None
    ) -> None:
        strange = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - _LAYER_TYPES
        if strange:
            raise ModelError(f"{type(model).__name__} has layers without keys and values: {', '.join(sorted(strange))}")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.rule = rule or MatchRule()
        self.max_rows = max_rows
        self._decoder = decoder_for(tokenizer)
        self._end_ids = _end_ids(model, tokenizer)
        # Only a statement's last token is drawn from; models without the argument compute the other logits in vain.
        forward = inspect.signature(model.forward).parameters
        self._forward_options = {"logits_to_keep": 1} if "logits_to_keep" in forward else {}

    def sample(
        self,
        requests: Sequence[SampleRequest],
        policy: SamplingPolicy,
        *,
        keep_texts: bool = False,
        on_done: Callable[[int], None] | None = None,
    ) -> list[SampleTally]:
        """Continue every statement; see `sftknow.mastery.sampling.Sampler.sample`.

        The same requests in the same order give the same tallies, bit for bit. In another company a statement's
        samples may differ where float rounding does, which shows in few samples of a million.

        Raises:
            RecipeError: a temperature, length or number of samples that nothing can be drawn with.
            FactsError: a statement without any token.
            ModelError: the model's logits are not finite, its context is too short, or its cache is no plain one.
        """
        _check(policy)
        if not requests:
            return []
        encoded = self._encode(requests, policy)
        batch = Batch(
            requests,
            encoded,
            policy,
            forward=self._forward,
            decoder=self._decoder,
            end_ids=self._end_ids,
            rule=self.rule,
            limit=self._row_limit(max(map(len, encoded)) + policy.max_new_tokens),
            keep_texts=keep_texts,
        )
        with torch.inference_mode():
            while batch.working:
                finished = batch.step()
                if finished and on_done is not None:
                    on_done(finished)
        return batch.tallies()

    def _forward(self, ids: Ints, cache: SlotCache) -> torch.Tensor:
        """One pass over the cache's window: ids [rows, new tokens] to the last token's logits [rows, vocabulary]."""
        inputs = torch.from_numpy(ids).to(self.model.device)
        output = self.model(input_ids=inputs, past_key_values=cache.cache, use_cache=True, **self._forward_options)
        if not cache.cache.layers:
            raise ModelError(
                f"{type(self.model).__name__} does not keep a plain key-value cache; sftknow cannot grade it"
            )
        last: torch.Tensor = output.logits[:, -1]
        return last

    def _row_limit(self, columns: int) -> int:
        """Most samples alive at once, where each may hold so many tokens."""
        if self.max_rows is not None:
            return self.max_rows
        device = self.model.device
        if device.type != "cuda":
            return 2048
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        kept = 2 * config.num_hidden_layers * heads * width * columns * self.model.dtype.itemsize
        logits = 3 * 4 * config.vocab_size
        free, _ = torch.cuda.mem_get_info(device)
        return int(max(64, min(16384, free // 2 // (kept + logits))))

    def _encode(self, requests: Sequence[SampleRequest], policy: SamplingPolicy) -> list[list[int]]:
        encoded: list[list[int]] = self.tokenizer([request.prompt for request in requests])["input_ids"]
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        for request, ids in zip(requests, encoded, strict=True):
            if ids and ids[-1] in self._end_ids:
                ids.pop()  # some tokenizers close every text; a statement goes on
            if not ids:
                raise FactsError(f"statement {request.template} of {request.fact_id} has no token: {request.prompt!r}")
            if limit is not None and len(ids) + policy.max_new_tokens > limit:
                raise ModelError(
                    f"statement {request.template} of {request.fact_id} has {len(ids)} tokens, and with "
                    f"{policy.max_new_tokens} new ones exceeds the model's {limit} positions"
                )
        return encoded


def load_sampler(ref: ModelRef, *, device: str = "auto", max_rows: int | None = None) -> TransformersSampler:
    """Load a model and its tokenizer for grading.

    Args:
        ref: folder or Hub id; ``ref.dtype`` None keeps the dtype the weights are stored in.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:1`` …
        max_rows: see `TransformersSampler`.

    Raises:
        DeviceError: this machine lacks the device.
        ModelError: model or tokenizer cannot be loaded.
    """
    return TransformersSampler(load_model(ref, device=device), load_tokenizer(ref), max_rows=max_rows)


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a text, by the generation config, the model's config or the tokenizer."""
    ids: set[int] = set()
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        named = getattr(holder, "eos_token_id", None)
        if named is not None:
            ids |= set(named) if isinstance(named, (list, tuple)) else {int(named)}
    return frozenset(ids)


def _check(policy: SamplingPolicy) -> None:
    if not policy.temperature > 0:
        raise RecipeError(f"temperature is {policy.temperature}; it must be above 0, or there is nothing to draw")
    if policy.samples < 1 or policy.max_new_tokens < 1:
        raise RecipeError("samples and max_new_tokens must be at least 1")
