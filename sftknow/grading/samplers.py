"""The samplers by name: what ``sampler`` in a recipe and ``sftknow grade --sampler`` may say.

Each is a function from a model and the grading options to a `sftknow.grading.sampling.Sampler`. It is called in every
process that samples, so also on the nodes of a cluster. Names are known without loading torch or vLLM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sftknow.errors import RecipeError
from sftknow.records import ModelRef
from sftknow.registry import Registry

if TYPE_CHECKING:
    from sftknow.grading.sampling import Sampler

LoadSampler = Callable[[ModelRef, Any, str], "Sampler"]
"""Gets the model (a folder on this machine), the grading options, and the device: ``auto``, ``cpu``, ``cuda`` …"""

SAMPLERS: Registry[LoadSampler] = Registry("sampler", RecipeError)
"""See docs/extending/samplers.md."""


@SAMPLERS.register("transformers")
def load_transformers(ref: ModelRef, options: Any, device: str) -> Sampler:
    """`sftknow.grading.transformers_sampler`."""
    from sftknow.grading.transformers_sampler import load_sampler

    return load_sampler(ref, device=device, memory=options.memory)


@SAMPLERS.register("vllm")
def load_vllm(ref: ModelRef, options: Any, device: str) -> Sampler:
    """`sftknow.grading.vllm_sampler`."""
    from sftknow.grading.vllm_sampler import VLLMSampler

    return VLLMSampler(ref, device=device, **vars(options.vllm))
