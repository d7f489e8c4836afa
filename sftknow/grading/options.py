"""How facts are graded: options that recipes and `sftknow grade` share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from sftknow.answers import Match, MatchRule
from sftknow.cluster import Cluster
from sftknow.errors import OptionError
from sftknow.grading.samplers import SAMPLERS
from sftknow.options import Bytes, Count, Limits, Options, Positive, shown_as
from sftknow.records import SamplingPolicy
from sftknow.registry import Registered

_IN_ROUNDS = ("transformers", "vllm")
"""Samplers that heed `SampleRequest.first`."""


@dataclass(frozen=True, kw_only=True)
class VLLMOptions(Options):
    """Options of the vLLM sampler."""

    tensor_parallel: Count = 1
    """vLLM: GPUs that share one copy of the model."""
    data_parallel: Count = 1
    """vLLM: copies of the model, each on GPUs of its own."""
    max_length: Count | None = None
    """Most tokens of a statement with its continuation; None for the model's own, at most 4,096."""
    cache_gib: Positive | None = None
    """Memory of the key-value cache in GiB; None for 2 on a CPU, and on GPUs for what vLLM leaves room for."""
    arguments: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    """Further arguments of vLLM's engine by their own names, such as ``gpu_memory_utilization: 0.8``."""


@dataclass(frozen=True, kw_only=True)
class GradingOptions(SamplingPolicy):
    """What is asked of the model for each fact (`SamplingPolicy`), what a hit is, and where the asking is done."""

    leading = ("samples", "temperature", "max_new_tokens", "templates")

    templates: tuple[int, ...] | None = None
    """Indices of the statement templates to use; None for all 21."""
    shard_size: Count = 256
    """Facts saved at once: what a kill can cost."""
    keep_texts: bool = False
    """Store every continuation, so that other synonyms and matching rules can be tried without the model."""
    match: Match = "contains"
    """What makes a continuation a hit: it ``contains`` an answer (the paper's), contains it as a whole ``word``, or is
    it and nothing else (``exact``). The two stricter ones draw every continuation to its end, which costs time.

    The paper asks that the answer be contained (F.1), which counts "Romania" as right for "Oman"; the report shows
    whole words and exact matches beside it."""
    case_sensitive: bool = True
    """Whether upper and lower case must agree (``exact`` never asks for it)."""
    certainty: Annotated[float, Limits(gt=0.5, lt=1)] | None = field(default=None, metadata=shown_as("P"))
    """Decide early: ask a fact in rounds (3, 6, then all 10 continuations of each statement) until the whole grading
    would put it into the same bucket with this probability, such as 0.95; None for the whole grading of every fact."""
    memory: Bytes | None = field(default=None, metadata=shown_as("SIZE"))
    """Memory that the process may take, the model included, such as 4GB (on a GPU: of its memory); it has no bearing on
    the result; None for 1 GB beside the model, or half of what is free where that is less."""
    sampler: Annotated[str, Registered(SAMPLERS)] = "transformers"
    """What continues the statements. Single samples differ between samplers, their distribution does not.

    The paper names a temperature (3.3) and neither top-k nor top-p: nothing of the distribution is cut off."""
    engine: Literal["local", "ray"] = "local"
    """Where: in this process, or on the nodes of a Ray cluster. It has no bearing on the result."""
    vllm: VLLMOptions = field(default_factory=VLLMOptions)
    ray: Cluster = field(default_factory=Cluster)

    def check(self) -> None:
        if self.certainty is not None and self.sampler not in _IN_ROUNDS:
            raise OptionError(
                f"{{key}} needs a sampler that can go on with a statement ({', '.join(_IN_ROUNDS)}), "
                f"which {self.sampler} is not known to be",
                ("certainty",),
            )

    @property
    def policy(self) -> SamplingPolicy:
        """The part that decides what R means."""
        return SamplingPolicy(**{each.name: getattr(self, each.name) for each in fields(SamplingPolicy)})

    @property
    def rule(self) -> MatchRule:
        """The part that decides what a hit is."""
        return MatchRule(match=self.match, case_sensitive=self.case_sensitive)
