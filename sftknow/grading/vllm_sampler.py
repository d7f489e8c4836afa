"""Sampling with vLLM: for models that want several GPUs, or that vLLM runs faster than transformers does.

The prompts are the same token ids as the transformers sampler's, and the samples have the same distribution; the random
streams are vLLM's own, so that single samples differ. A sample ends early where vLLM finds an answer in its text. That
only saves time: what is a hit is decided by `sftknow.answers`, and where the two disagree (an accent that turns "Cafe"
into "Café") the statement is sampled once more to its end.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sftknow.answers import Matcher
from sftknow.checkpoints.adapters import is_adapter
from sftknow.errors import DeviceError, MissingExtraError, ModelError, RecipeError, first_line
from sftknow.grading.decoding import decoder_for
from sftknow.grading.encoding import encode_statements
from sftknow.grading.sampling import SampleRequest
from sftknow.models.limits import end_ids, most_positions
from sftknow.models.loading import SPREAD, load_tokenizer, quiet_libraries
from sftknow.records import ModelRef, SampleTally, SamplingPolicy

_IN_FLIGHT = 8192
"""Samples that vLLM is given at once: more than it runs at once anywhere, fewer than fill its queues' memory."""

_LONGEST = 4096
"""Default bound on a statement with its continuation, in tokens: vLLM reserves memory for the longest."""

_CPU_CACHE_GIB = 2.0

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # nothing leaves the machine unasked
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output is for results
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # torch's threads do not survive a fork
}


class Draw(NamedTuple):
    """One sample as vLLM gave it."""

    ids: tuple[int, ...]
    """Token ids of the continuation without the end token."""
    stopped: bool
    """Whether an answer's text ended it."""


class VLLMSampler:
    """Samples continuations with vLLM, in processes that it starts itself.

    Args:
        ref: folder or Hub id; ``ref.dtype`` None keeps the dtype that the weights are stored in.
        device: ``auto``, or ``cpu`` or ``cuda`` to insist; vLLM's build decides what it runs on.
        tensor_parallel: GPUs that share one copy of the model.
        data_parallel: copies of the model, each on its own GPUs.
        max_length: most tokens of a statement with its continuation; None for the model's own, at most 4,096.
        cache_gib: memory of the key-value cache; None for 2 GiB on a CPU, and on GPUs what vLLM leaves room for.
        arguments: further arguments of vLLM's engine, by their names there; they override all of the above.

    Raises:
        MissingExtraError: vLLM is not installed.
        DeviceError: vLLM's build runs on something else.
        ModelError: the model cannot be loaded.
    """

    def __init__(
        self,
        ref: ModelRef,
        *,
        device: str = "auto",
        tensor_parallel: int = 1,
        data_parallel: int = 1,
        max_length: int | None = None,
        cache_gib: float | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from vllm.platforms import current_platform
        except ImportError:
            raise MissingExtraError("vllm", "vllm") from None
        on_cpu = bool(current_platform.is_cpu())
        _check_device(device, on_cpu=on_cpu)
        if is_adapter(Path(ref.path)):
            raise ModelError(
                f"{ref} is an adapter, not a whole model; merge it into its base (merge_and_unload) and save"
            )
        self.tokenizer = load_tokenizer(ref)
        config, generation = _configs(ref)
        self._decoder = decoder_for(self.tokenizer)
        self._end_ids = end_ids(generation, config, self.tokenizer)
        self._positions = min(max_length or _LONGEST, most_positions(config) or _LONGEST)
        options: dict[str, Any] = {
            "model": ref.path,
            "revision": ref.revision,
            "tokenizer_revision": ref.revision,
            "dtype": ref.dtype or "auto",
            "load_format": "safetensors",  # never pickles, which may run code
            "generation_config": "vllm",  # the model's own sampling defaults (top-p, …) are not the paper's
            "max_model_len": self._positions,
            "enable_prefix_caching": True,
            "tensor_parallel_size": tensor_parallel,
            "data_parallel_size": data_parallel,
            "disable_log_stats": True,
        }
        if on_cpu:
            options["enforce_eager"] = True  # compiling takes longer than a shard
        if cache_gib or on_cpu:
            options["kv_cache_memory_bytes"] = int((cache_gib or _CPU_CACHE_GIB) * 2**30)
        if tensor_parallel > 1:
            options["distributed_executor_backend"] = "mp"  # this machine's GPUs, also inside a Ray worker
        self._loop = asyncio.new_event_loop()
        self._count = 0
        self._engine = self._loop.run_until_complete(_start(ref, {**options, **(arguments or {})}))
        self._end = weakref.finalize(self, _end, self._engine, self._loop)

    def sample(
        self,
        requests: Sequence[SampleRequest],
        policy: SamplingPolicy,
        *,
        keep_texts: bool = False,
        on_done: Callable[[float], None] | None = None,
    ) -> list[SampleTally]:
        """Continue every statement; see `sftknow.grading.sampling.Sampler.sample`.

        Each statement has its own seed, a function of (policy.seed, fact id, template). The same requests give the same
        samples up to float rounding, which depends on what vLLM happens to put into a batch.

        Raises:
            RecipeError: a temperature that vLLM does not take.
            FactsError: a statement without any token.
            ModelError: a statement is too long.
        """
        if not 0.01 <= policy.temperature <= 2:
            raise RecipeError(f"temperature is {policy.temperature}; vLLM draws with 0.01 to 2 (transformers with any)")
        if not requests:
            return []
        encoded = encode_statements(self.tokenizer, requests, policy, ends=self._end_ids, positions=self._positions)
        draws = self._run(self._draw(requests, encoded, policy, stop=not keep_texts, on_done=on_done))
        counted = [self._count_hits(request, drawn) for request, drawn in zip(requests, draws, strict=True)]
        again = [i for i, hits in enumerate(counted) if hits is None]
        if again:
            some = [requests[i] for i in again]
            redrawn = self._run(self._draw(some, [encoded[i] for i in again], policy, stop=False, on_done=None))
            for i, drawn in zip(again, redrawn, strict=True):
                counted[i] = self._count_hits(requests[i], drawn)
        tallies = []
        for request, hits, drawn in zip(requests, counted, draws, strict=True):
            assert hits is not None
            texts = tuple(self._decoder.whole([draw.ids for draw in drawn])) if keep_texts else None
            tallies.append(
                SampleTally(
                    fact_id=request.fact_id, template=request.template, tries=policy.samples, hits=hits, texts=texts
                )
            )
        return tallies

    def close(self) -> None:
        """End vLLM's processes. Happens by itself when nobody holds the sampler any more, and at the program's end."""
        self._end()

    def _run(self, work: Coroutine[Any, Any, list[list[Draw]]]) -> list[list[Draw]]:
        return self._loop.run_until_complete(work)

    async def _draw(
        self,
        requests: Sequence[SampleRequest],
        encoded: Sequence[list[int]],
        policy: SamplingPolicy,
        *,
        stop: bool,
        on_done: Callable[[float], None] | None,
    ) -> list[list[Draw]]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        room = asyncio.Semaphore(max(1, _IN_FLIGHT // policy.samples))

        async def one(request: SampleRequest, ids: list[int]) -> list[Draw]:
            params = SamplingParams(
                n=policy.samples,
                temperature=policy.temperature,
                top_p=1.0,
                top_k=0,
                min_p=0.0,
                max_tokens=policy.max_new_tokens,
                seed=_seed(request, policy),
                stop=_stop_strings(request.answers) if stop else None,
                stop_token_ids=sorted(self._end_ids),
                include_stop_str_in_output=True,
                detokenize=stop,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            async with room:
                self._count += 1
                final = None
                async for output in self._engine.generate(
                    {"prompt_token_ids": ids}, params, request_id=f"{self._count}"
                ):
                    final = output
            if final is None or len(final.outputs) != policy.samples:
                raise ModelError(f"vLLM gave no {policy.samples} samples for statement {request.prompt!r}")
            if on_done is not None:
                on_done(1)
            return [self._draw_of(completion) for completion in sorted(final.outputs, key=lambda each: each.index)]

        return await asyncio.gather(*(one(request, ids) for request, ids in zip(requests, encoded, strict=True)))

    def _draw_of(self, completion: Any) -> Draw:
        ids = tuple(completion.token_ids)
        if ids and ids[-1] in self._end_ids:
            ids = ids[:-1]
        return Draw(ids, isinstance(completion.stop_reason, str))

    def _count_hits(self, request: SampleRequest, drawn: Sequence[Draw]) -> int | None:
        """Samples with an answer; None where vLLM ended one early that has none, so that its end must be seen."""
        matcher = Matcher(request.answers)
        hits = 0
        for draw, text in zip(drawn, self._decoder.whole([draw.ids for draw in drawn]), strict=True):
            if matcher.contains(text) or (not text.isascii() and self._contained_once(matcher, draw.ids)):
                hits += 1
            elif draw.stopped:
                return None
        return hits

    def _contained_once(self, matcher: Matcher, ids: Sequence[int]) -> bool:
        """Whether the text had an answer at some step, before an accent made another letter of its last one."""
        return any(map(matcher.contains, self._decoder.settled([ids[:end] for end in range(1, len(ids))])))


def _seed(request: SampleRequest, policy: SamplingPolicy) -> int:
    """A statement's seed. vLLM gives sample ``i`` the seed plus ``i``, so seeds lie far apart."""
    name = f"{policy.seed}\0{request.template}\0{request.fact_id}".encode()
    number = hashlib.blake2b(name, digest_size=8, person=b"sftknow-vllm").digest()
    return (int.from_bytes(number, "little") >> 2) + request.first


def _stop_strings(answers: Sequence[str]) -> list[str]:
    """The answers as models write them, with straight and with typographic apostrophes."""
    spelled = [a for answer in answers for a in (answer, answer.replace("’", "'"), answer.replace("'", "’"))]
    return list(dict.fromkeys(a.strip() for a in spelled if a.strip()))


def _check_device(device: str, *, on_cpu: bool) -> None:
    if device in ("auto", SPREAD):  # it spreads by tensor_parallel
        return
    if device != "cpu" and not device.startswith("cuda"):
        raise DeviceError(f"vLLM takes the device auto, cpu or cuda, not {device!r}")
    if (device == "cpu") != on_cpu:
        there = "a CPU" if on_cpu else "GPUs"
        raise DeviceError(f"the vLLM that is installed runs on {there}, not on {device}; use --device auto")
    if ":" in device:
        raise DeviceError(f"vLLM chooses its GPUs by itself; set CUDA_VISIBLE_DEVICES in place of --device {device}")


def _configs(ref: ModelRef) -> tuple[Any, Any]:
    """The model's config and generation config."""
    from transformers import AutoConfig, GenerationConfig

    with quiet_libraries():
        try:
            config = AutoConfig.from_pretrained(ref.path, revision=ref.revision, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{ref} has no config that can be read ({first_line(error)})") from error
        try:
            generation = GenerationConfig.from_pretrained(ref.path, revision=ref.revision)
        except (OSError, ValueError):
            generation = GenerationConfig.from_model_config(config)
    return config, generation


async def _start(ref: ModelRef, options: dict[str, Any]) -> Any:
    """The engine; made within the event loop that it is to run in."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**options), usage_context=UsageContext.LLM_CLASS)
    except TypeError as error:
        raise RecipeError(f"vLLM's engine does not take these arguments: {first_line(error)}") from None
    except (RuntimeError, ValueError, OSError, AssertionError, KeyError, ImportError) as error:
        raise ModelError(f"vLLM cannot run {ref} ({first_line(error)}); its own messages are above") from error


def _end(engine: Any, loop: asyncio.AbstractEventLoop) -> None:
    engine.shutdown()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()
