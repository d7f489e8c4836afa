"""Sampling with transformers, where samples that agree so far are computed once.

A statement is run once for all its samples. Samples whose tokens so far are equal share a row; each draws its next
token with its own random number, so that the row's samples are a multinomial draw, and the row splits where they
differ. A row that contains an answer counts all its samples as hits and leaves, as does a row that ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sftknow.answers import MatchRule
from sftknow.errors import DeviceError, ModelError
from sftknow.grading.batch import Batch, Ints
from sftknow.grading.cache_check import check_cache, check_layers
from sftknow.grading.decoding import decoder_for
from sftknow.grading.encoding import encode_statements
from sftknow.grading.sampling import SampleRequest
from sftknow.grading.slot_cache import SlotCache
from sftknow.models.forward import takes
from sftknow.models.limits import end_ids, most_positions
from sftknow.models.loading import load_model, load_tokenizer
from sftknow.records import ModelRef, SampleTally, SamplingPolicy


class TransformersSampler:
    """Samples continuations from any causal language model of transformers with a plain key-value cache.

    Args:
        model: a loaded causal language model, on its device and in its dtype; put into evaluation mode.
        tokenizer: its tokenizer. Statements get its own special tokens, save an end token at the end.
        max_rows: most samples alive at once, and so an upper bound on the rows of a batch. None chooses: 2,048 on a
            CPU, and on a GPU what half of its memory beside the model holds, so that equal devices choose alike.
        rule: how answers are compared.

    Raises:
        ModelError: the model keeps something else than keys and values, as state-space layers do, or gives other
            logits with its cache than without; or its logits are not finite.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, max_rows: int | None = None, rule: MatchRule | None = None
    ) -> None:
        self._cache_name = check_layers(model)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.rule = rule or MatchRule()
        self.max_rows = max_rows
        self._decoder = decoder_for(tokenizer)
        self._end_ids = end_ids(getattr(model, "generation_config", None), model.config, tokenizer)
        self._positions = most_positions(model.config)
        # Only a statement's last token is drawn from; models without the argument compute the other logits in vain.
        self._forward_options = {"logits_to_keep": 1} if "logits_to_keep" in takes(model) else {}
        check_cache(self.model, tokenizer, self._forward, self._positions)

    def sample(
        self,
        requests: Sequence[SampleRequest],
        policy: SamplingPolicy,
        *,
        keep_texts: bool = False,
        on_done: Callable[[int], None] | None = None,
    ) -> list[SampleTally]:
        """Continue every statement; see `sftknow.grading.sampling.Sampler.sample`.

        The same requests in the same order give the same tallies, bit for bit, on the same kind of device with as many
        threads: the batch's make-up follows from the requests alone. In another company a statement meets the same
        random numbers, and its logits differ by float rounding only (a matrix product may add in another order). That
        moves a draw where a random number falls into the gap: on the lab in float32 one continuation of 3,360 came out
        otherwise in batches of a twelfth the size and the other order; in bfloat16 the gaps are wider. There is no bias
        in it, and shards of fixed make-up (`sftknow.grading.shards`) keep it out of R.

        Nothing of the model's generation config is used but its end tokens: no top-k, top-p or repetition penalty.

        Raises:
            FactsError: a statement without any token.
            ModelError: the model's logits are not finite, or its context is too short.
            DeviceError: the GPU's memory does not hold so many rows.
        """
        if not requests:
            return []
        encoded = encode_statements(self.tokenizer, requests, policy, ends=self._end_ids, positions=self._positions)
        limit = self._row_limit(max(map(len, encoded)) + policy.max_new_tokens)
        batch = Batch(
            requests,
            encoded,
            policy,
            forward=self._forward,
            decoder=self._decoder,
            end_ids=self._end_ids,
            rule=self.rule,
            limit=limit,
            keep_texts=keep_texts,
        )
        try:
            with torch.inference_mode():
                while batch.working:
                    finished = batch.step()
                    if finished and on_done is not None:
                        on_done(finished)
        except torch.OutOfMemoryError:
            raise DeviceError(
                f"the memory of {self.model.device} does not hold {limit} samples beside the model; free it of other "
                "programs, or give TransformersSampler a smaller max_rows"
            ) from None
        return batch.tallies()

    def _forward(self, ids: Ints, cache: SlotCache) -> torch.Tensor:
        """One pass over the cache's window: ids [rows, new tokens] to the last token's logits [rows, vocabulary]."""
        inputs = torch.from_numpy(ids).to(self.model.device)
        options = {self._cache_name: cache.cache, **self._forward_options}
        output = self.model(input_ids=inputs, use_cache=True, **options)
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
        _, memory = torch.cuda.mem_get_info(device)
        weights = sum(weight.numel() * weight.element_size() for weight in self.model.parameters())
        return int(max(64, min(16384, (memory - weights) // 2 // (kept + logits))))


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
