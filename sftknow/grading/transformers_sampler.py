"""Sampling with transformers, where samples that agree so far are computed once.

A statement is run once for all its samples. Samples whose tokens so far are equal share a row; each draws its next
token with its own random number, so that the row's samples are a multinomial draw, and the row splits where they
differ. A row that contains an answer counts all its samples as hits and leaves, as does a row that ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch

from sftknow.answers import MatchRule
from sftknow.errors import DeviceError, ModelError
from sftknow.grading.batch import Batch, Ints
from sftknow.grading.cache_check import check_cache, check_layers
from sftknow.grading.completions import CompletionFilter
from sftknow.grading.decoding import decoder_for
from sftknow.grading.encoding import encode_statements
from sftknow.grading.journal import Journal
from sftknow.grading.kernels import CpuKernels
from sftknow.grading.reach import Spelling
from sftknow.grading.room import room_for
from sftknow.grading.sampling import SampleRequest
from sftknow.grading.slot_cache import SlotCache, on_device
from sftknow.models.forward import takes
from sftknow.models.limits import end_ids, most_positions
from sftknow.models.loading import load_model, load_tokenizer
from sftknow.records import ModelRef, SampleTally, SamplingPolicy


class TransformersSampler:
    """Samples continuations from any causal language model of transformers with a plain key-value cache.

    Args:
        model: a loaded causal language model, on its device and in its dtype; put into evaluation mode.
        tokenizer: its tokenizer. Statements get its own special tokens, save an end token at the end.
        max_rows: most samples alive at once, and so an upper bound on the rows of a batch; None for what ``memory``
            holds.
        memory: bytes that the process may take, the model included (on a GPU: of its memory); None for 1 GB beside
            the model on a CPU, or half of what is free where that is less, and on a GPU for half of what the model
            leaves.
        rule: how answers are compared.

    Raises:
        ModelError: the model keeps something else than keys and values, as state-space layers do, or gives other
            logits with its cache than without; or its logits are not finite.
    """

    stops = True
    """Whether `sample` can be left by an error that ``on_done`` raises."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_rows: int | None = None,
        memory: int | None = None,
        rule: MatchRule | None = None,
    ) -> None:
        self._cache_name = check_layers(model)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.rule = rule or MatchRule()
        self.max_rows, self.memory = max_rows, memory
        self._decoder = decoder_for(tokenizer)
        self._end_ids = end_ids(getattr(model, "generation_config", None), model.config, tokenizer)
        self._positions = most_positions(model.config)
        # Only a statement's last token is drawn from; models without the argument compute the other logits in vain.
        self._keeps = "logits_to_keep" in takes(model)
        self._kernels = CpuKernels(self.model)
        check_cache(self.model, tokenizer, self._forward, self._positions)

    @cached_property
    def _completions(self) -> CompletionFilter:
        return CompletionFilter(self._decoder, self.rule)

    @cached_property
    def _spelling(self) -> Spelling:
        return Spelling(self._decoder, self.rule)

    def sample(
        self,
        requests: Sequence[SampleRequest],
        policy: SamplingPolicy,
        *,
        keep_texts: bool = False,
        on_done: Callable[[float], None] | None = None,
        journal: Journal | None = None,
    ) -> list[SampleTally]:
        """Continue every statement; see `sftknow.grading.sampling.Sampler.sample`.

        ``on_done`` is told parts of statements, after every pass through the model: `sftknow.grading.pace`.
        ``journal`` knows what is not to be asked again and is told of every statement that is finished.

        On a CPU the same requests give the same tallies, bit for bit, with as many threads: whatever the memory and so
        the rows at once, whatever their order, and whichever of them are known already. Random numbers belong to the
        samples, prompts are cut where all statements of their length ask for it, and every pass has enough rows that
        matrix products add in one order (`Room.least`). On a GPU, whose products add as the number of rows suggests,
        this holds for the same requests in the same order on equal devices; in another company logits differ by float
        rounding, which moves a draw where a random number falls into the gap. There is no bias in it, and shards of
        fixed make-up (`sftknow.grading.shards`) keep it out of R.

        Nothing of the model's generation config is used but its end tokens: no top-k, top-p or repetition penalty.

        Raises:
            FactsError: a statement without any token.
            ModelError: the model's logits are not finite, or its context is too short.
            DeviceError: the GPU's memory does not hold so many rows.
        """
        if not requests:
            return []
        encoded = encode_statements(self.tokenizer, requests, policy, ends=self._end_ids, positions=self._positions)
        room = room_for(
            self.model,
            max(map(len, encoded)) + policy.max_new_tokens,
            each=policy.samples,
            memory=self.memory,
            most=self.max_rows,
        )
        batch: Batch
        known = journal.known if journal is not None else {}

        def tell() -> None:
            if on_done is not None and (new := batch.pace.done()):
                on_done(new)

        batch = Batch(
            requests,
            encoded,
            policy,
            forward=self._forward,
            decoder=self._decoder,
            end_ids=self._end_ids,
            rule=self.rule,
            completions=self._completions,
            spelling=self._spelling,
            room=room,
            keep_texts=keep_texts,
            known=known,
            on_pass=tell,
        )
        if known and on_done is not None:
            on_done(len(known))
        try:
            with torch.inference_mode():
                while batch.working:
                    for place in batch.step():
                        if journal is not None:
                            journal.add(place, batch.tally(place))
        except torch.OutOfMemoryError:
            raise DeviceError(
                f"the memory of {self.model.device} does not hold {room.samples} samples beside the model; free it of "
                "other programs, or give a smaller --memory (grading.memory of a recipe)"
            ) from None
        rest = batch.pace.rest()
        if rest and on_done is not None:
            on_done(rest)
        return batch.tallies()

    @property
    def journals(self) -> bool:
        """Whether a statement's samples are the same bits in any company, so that it can be left out of a batch."""
        return bool(self.model.device.type == "cpu")

    def _forward(self, ids: Ints, cache: SlotCache, keep: int) -> torch.Tensor:
        """One pass over the cache's window: ids [rows, new tokens] to the last token's logits [rows, vocabulary]."""
        inputs = on_device(ids, self.model.device)
        options = {self._cache_name: cache.cache, **({"logits_to_keep": keep} if self._keeps else {})}
        with self._kernels.used():
            output = self.model(input_ids=inputs, use_cache=True, **options)
        if not cache.cache.layers:
            raise ModelError(
                f"{type(self.model).__name__} does not keep a plain key-value cache; sftknow cannot grade it"
            )
        last: torch.Tensor = output.logits[:, -1]
        return last


def load_sampler(
    ref: ModelRef, *, device: str = "auto", max_rows: int | None = None, memory: int | None = None
) -> TransformersSampler:
    """Load a model and its tokenizer for grading.

    Args:
        ref: folder or Hub id; ``ref.dtype`` None keeps the dtype the weights are stored in.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:1`` …
        max_rows: see `TransformersSampler`, as for ``memory``.

    Raises:
        DeviceError: this machine lacks the device.
        ModelError: model or tokenizer cannot be loaded.
    """
    return TransformersSampler(load_model(ref, device=device), load_tokenizer(ref), max_rows=max_rows, memory=memory)
