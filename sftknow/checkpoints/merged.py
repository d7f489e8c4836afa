"""A LoRA adapter and its base read as one checkpoint: what the adapter changes is formed as it is read.

A folder of peft's holds a low-rank change of some matrices, ΔW = scaling · B A, and sometimes whole tensors.
`merged_index` makes of it and its base the index of the merged checkpoint: names, dtypes, shapes and places are those
of the base's files, and a tensor that the adapter touches has `TensorEntry.made`, which forms its bytes, one tensor at
a time. They are those that peft's ``merge_and_unload`` gives, bit by bit: the same operations of torch in the same
order, with float32 factors and the base in the dtype it is stored in. Nothing is written to disk.

Sources: LoRA, Hu et al. 2022; rsLoRA, Kalajdzievski 2023; DoRA, Liu et al. 2024; peft 0.21, tuners/lora.
"""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sftknow.checkpoints.adapters import CONFIG, Adapter
from sftknow.checkpoints.index import CheckpointIndex, TensorEntry
from sftknow.checkpoints.reader import FLOAT_BITS, CheckpointReader
from sftknow.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_BODIES = ("model.", "transformer.", "gpt_neox.")
"""What a model with a head may put before names that a file of its body alone has without."""
_HEADS = ("lm_head", "embed_out")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "tokens_embed.weight")
_CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
"""Models of transformers whose layers store a matrix as (inputs, outputs)."""
_KEPT_BYTES = 2**28
"""Of formed tensors, besides two of the largest: threads may each be at a small one of their own."""


def merged_index(base: CheckpointIndex, folder: Path) -> CheckpointIndex:
    """The index of an adapter merged into its base: as the base's, but that tensors are formed as they are read.

    Args:
        base: of the model that the adapter was trained on.
        folder: the adapter's.

    Raises:
        CheckpointError: what `Adapter.read` raises; this is not the adapter's base, told from names and
            shapes; a vocabulary that was resized.
    """
    return Merge(base, Adapter.read(folder)).index


class Merge:
    """An adapter and its base, as one checkpoint.

    Attributes:
        index: of the merged checkpoint.
        changed: names of the tensors that the adapter touches, each with its parameter's name in the loaded model.
    """

    def __init__(self, base: CheckpointIndex, adapter: Adapter) -> None:
        self._base = base
        self._adapter = adapter
        self._steps: dict[str, list[_Step]] = defaultdict(list)
        self._formed: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()
        self.changed: dict[str, str] = {}
        for module, parts in self._modules().items():
            self._plan(module, parts)
        for steps in self._steps.values():  # peft loads all that is whole before it merges anything
            steps.sort(key=lambda step: not isinstance(step, _Whole))
        sizes = [base.tensors[name].end - base.tensors[name].start for name in self._steps]
        self._room = _KEPT_BYTES + 2 * max(sizes, default=0)
        made = {name: replace(base.tensors[name], made=partial(self._fill, name)) for name in self._steps}
        self.index = replace(base, folder=adapter.folder, base_folder=base.folder, tensors={**base.tensors, **made})

    def values(self, name: str) -> torch.Tensor:
        """One tensor of the merged checkpoint, in the base's dtype."""
        entry = self._base.tensors[name]
        bits: NDArray[Any] = np.empty(entry.elements, dtype=FLOAT_BITS[entry.dtype])
        self._fill(name, 0, bits)
        return _tensor(bits, entry)

    def low_rank(self) -> dict[str, LowRank]:
        """By stored tensor its low-rank change, of an adapter that has nothing but plain LoRA.

        Raises:
            CheckpointError: it has magnitudes (DoRA), whole tensors, trained rows or biases.
        """
        found = {}
        for name, steps in self._steps.items():
            (step,) = steps if len(steps) == 1 else (None,)
            if not isinstance(step, LowRank) or step.magnitude is not None:
                raise CheckpointError(
                    f"{self._adapter.folder} changes {name} by more than two small matrices (DoRA, modules_to_save, "
                    "biases or rows of its own), so that no plain adapter holds the repair; leave --adapter out and "
                    "get a whole model"
                )
            found[name] = step
        return found

    # ---- which tensors are changed, and how -----------------------------------------------------------------------

    def _modules(self) -> dict[str, dict[str, TensorEntry]]:
        """The adapter's tensors by module, embeddings first and heads last, as a model runs through them."""
        found: dict[str, dict[str, TensorEntry]] = defaultdict(dict)
        for name, entry in self._adapter.tensors.items():
            match = re.fullmatch(
                r"(?P<module>.+?)\.(?P<part>lora_\w+(?:\.weight|\.bias)?|(?:token_adapter\.)?trainable_tokens_delta|"
                r"(?:base_layer\.)?(?:weight|bias))",
                name,
            )
            if match is None:
                raise self._not_exact(f"has {name}, which is no part of LoRA")
            found[match["module"]][match["part"].removeprefix("token_adapter.")] = entry
        return dict(sorted(found.items(), key=lambda item: item[0].rpartition(".")[2] in _HEADS))

    def _plan(self, module: str, parts: dict[str, TensorEntry]) -> None:
        """Add the steps of one module's tensors, in the order in which peft takes them."""
        for part in ("weight", "bias"):
            whole = parts.pop(f"base_layer.{part}", None) or parts.pop(part, None)
            if whole is not None:
                self._replace(f"{module}.{part}", whole)
        rows = parts.pop("trainable_tokens_delta", None)
        if rows is not None:
            self._rows(f"{module}.weight", module, rows)
        if not parts:
            return
        embedding = "lora_embedding_A" in parts
        first, second = (
            parts.pop(f"lora_{'embedding_' if embedding else ''}{x}{'' if embedding else '.weight'}", None)
            for x in "AB"
        )
        magnitude = parts.pop("lora_magnitude_vector", None) or parts.pop("lora_magnitude_vector.weight", None)
        bias = parts.pop("lora_B.bias", None)
        if first is None or second is None or parts:
            raise CheckpointError(
                f"{self._adapter.folder}: the adapter of {module} is not whole; copy or download it again"
            )
        scaling = self._scaling(module, first)
        entry = self._entry(f"{module}.weight")
        transposed = embedding or self._is_transposed(module, entry, first, second)
        wanted = (second.shape[0], first.shape[1]) if len(first.shape) == len(second.shape) == 2 else ()
        if entry.shape != (wanted[::-1] if transposed else wanted):
            raise self._other_base(module, entry, wanted)
        if magnitude is not None and magnitude.shape != wanted[:1]:
            raise self._other_base(module, entry, magnitude.shape)
        self._steps[entry.name].append(
            LowRank(
                first=first,
                second=second,
                magnitude=magnitude,
                scaling=scaling,
                transposed=transposed,
                embedding=embedding,
            )
        )
        if bias is not None:
            self._steps[self._entry(f"{module}.bias", bias.shape).name].append(_Bias(entry=bias, scaling=scaling))

    def _replace(self, name: str, whole: TensorEntry) -> None:
        config, module = self._adapter.config, name.rpartition(".")[0]
        kept = config.get("modules_to_save") or ()
        is_own = isinstance(kept, (list, tuple)) and module.rpartition(".")[2] in kept
        if is_own and self._is_tied(name) and not config.get("ensure_weight_tying"):
            raise self._not_exact(
                f"keeps {module} in modules_to_save while the base ties it to its twin, so that merging unties them"
            )
        self._steps[self._entry(name, whole.shape).name].append(_Whole(entry=whole))

    def _rows(self, name: str, module: str, rows: TensorEntry) -> None:
        wanted = self._adapter.config.get("trainable_token_indices")
        if isinstance(wanted, dict):
            wanted = next((value for key, value in wanted.items() if _fits(key, module)), None)
        entry = self._entry(name)
        places = [place for place in wanted or () if isinstance(place, int) and 0 <= place < entry.shape[0]]
        if rows.shape != (len(wanted or ()), *entry.shape[1:]) or len(places) != rows.shape[0]:
            raise self._other_base(module, entry, rows.shape)
        self._steps[entry.name].append(_Rows(entry=rows, places=places))

    def _entry(self, name: str, shape: tuple[int, ...] | None = None) -> TensorEntry:
        """The base's tensor behind a parameter of the loaded model; of a tied head, its embedding."""
        tensors = self._base.tensors
        candidates = [name, *(name.removeprefix(body) for body in _BODIES)]
        found = next((tensors[each] for each in candidates if each in tensors), None)
        twin = self._twin(name)
        if twin is not None:
            if found is not None and twin.name != found.name:
                raise CheckpointError(
                    f"{self._base.folder} ties its output head to its embedding but stores it a second time, and the "
                    f"adapter {self._adapter.folder} changes it; load the base and save it with transformers first"
                )
            found = twin
        if found is None:
            raise CheckpointError(
                f"{self._adapter.folder} adapts {name}, which {self._base.folder} does not have under that name; give "
                "the adapter's own base, or merge it there with merge_and_unload and save that"
            )
        if found.dtype not in FLOAT_BITS:
            raise CheckpointError(
                f"{self._base.folder}: {found.name} is stored as {found.dtype}; save it in bf16 or fp32"
            )
        if shape is not None and found.shape != shape:
            raise self._other_base(name, found, shape)
        self.changed.setdefault(found.name, name)
        return found

    def _is_tied(self, name: str) -> bool:
        module = name.rpartition(".")[0].rpartition(".")[2]
        head = module in _HEADS
        return (head or name.endswith(_EMBEDDINGS)) and self._ties

    @property
    def _ties(self) -> bool:
        """Whether the base's output head is its embedding."""
        if self._base.tied is not None:
            return self._base.tied
        return not any(f"{head}.weight" in self._base.tensors for head in _HEADS)

    def _twin(self, name: str) -> TensorEntry | None:
        """Of a tied base, the tensor that head and embedding share, where this is one of the two."""
        if not self._is_tied(name):
            return None
        if any(f"{head}.weight" in self._base.tensors for head in _HEADS) and not name.endswith(_EMBEDDINGS):
            return next((e for e in self._base.tensors.values() if e.name.endswith(_EMBEDDINGS)), None)
        stored = [entry for entry in self._base.tensors.values() if entry.name.endswith(_EMBEDDINGS)]
        return stored[0] if len(stored) == 1 else None

    def _scaling(self, module: str, first: TensorEntry) -> float:
        config = self._adapter.config
        rank, alpha = (
            next((value for key, value in (config.get(pattern) or {}).items() if _fits(key, module)), config.get(usual))
            for pattern, usual in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
        )
        if not isinstance(rank, int) or not isinstance(alpha, (int, float)) or first.shape[:1] != (rank,) or rank < 1:
            raise CheckpointError(
                f"{self._adapter.folder}: {CONFIG} gives {module} rank {rank} and alpha {alpha}, and its matrix has "
                f"shape {list(first.shape)}; copy or download both files again"
            )
        return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank

    def _is_transposed(self, module: str, entry: TensorEntry, first: TensorEntry, second: TensorEntry) -> bool:
        if len(entry.shape) != 2 or len(first.shape) != 2 or len(second.shape) != 2:
            raise self._not_exact(f"adapts {module}, whose weight has shape {list(entry.shape)} and is no matrix")
        outputs, inputs = second.shape[0], first.shape[1]
        if outputs != inputs:
            return entry.shape == (inputs, outputs)
        return self._base.config.get("model_type") in _CONV1D and module.rpartition(".")[2] not in _HEADS

    def _other_base(self, module: str, entry: TensorEntry, shape: Sequence[int]) -> CheckpointError:
        named, _ = self._adapter.base
        resized = entry.name.endswith(_EMBEDDINGS) or module.rpartition(".")[2] in _HEADS
        way_out = f"give its own base{f' ({named})' if named else ''}"
        if resized:
            way_out += (
                ", or, where its vocabulary was resized for training, merge it there (merge_and_unload) and save that"
            )
        return CheckpointError(
            f"{self._base.folder} is not the base of the adapter {self._adapter.folder}: {entry.name} has shape "
            f"{list(entry.shape)} there, and the adapter was made for {list(shape)}; {way_out}"
        )

    def _not_exact(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._adapter.folder} {what}: that is not merged exactly; merge it with peft (merge_and_unload), "
            "save_pretrained that, and give the folder"
        )

    # ---- forming --------------------------------------------------------------------------------------------------

    def _fill(self, name: str, offset: int, out: NDArray[Any]) -> None:
        """Fill an array (contiguous) with a tensor's merged bytes from ``offset`` on."""
        with self._lock:  # one tensor is formed at a time, so that memory is bounded
            formed = self._formed.pop(name, None)
            if formed is None:
                formed = self._form(name)
            self._formed[name] = formed
            while sum(kept.size for kept in self._formed.values()) > self._room:
                self._formed.popitem(last=False)
        size = out.size * out.itemsize
        out.view(np.uint8)[:] = formed[offset : offset + size]

    def _form(self, name: str) -> NDArray[np.uint8]:
        import torch

        entry = self._base.tensors[name]
        with CheckpointReader() as reader, torch.no_grad():
            load = partial(_loaded, reader)
            weight = load(entry)
            for step in self._steps[name]:
                weight = step.applied(weight, load)
        bits: NDArray[np.uint8] = weight.contiguous().view(torch.uint8).numpy().reshape(-1)
        return bits


Load = Callable[[TensorEntry], "torch.Tensor"]


@dataclass(frozen=True, kw_only=True)
class _Whole:
    """The adapter brings the tensor itself: ``modules_to_save``, trained biases, saved embeddings."""

    entry: TensorEntry

    def applied(self, weight: torch.Tensor, load: Load) -> torch.Tensor:
        return load(self.entry).to(weight.dtype)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Rows of an embedding that were trained by themselves."""

    entry: TensorEntry
    places: Sequence[int]

    def applied(self, weight: torch.Tensor, load: Load) -> torch.Tensor:
        import torch

        return weight.index_copy(0, torch.tensor(self.places), load(self.entry).to(weight.dtype))


@dataclass(frozen=True, kw_only=True)
class _Bias:
    """A bias of B's, which is added to the layer's."""

    entry: TensorEntry
    scaling: float

    def applied(self, weight: torch.Tensor, load: Load) -> torch.Tensor:
        weight += load(self.entry).float() * self.scaling
        return weight


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """W + scaling · B A; with magnitudes (DoRA) each output's weights of that, brought to its magnitude in length."""

    first: TensorEntry
    second: TensorEntry
    magnitude: TensorEntry | None
    scaling: float
    transposed: bool
    """W is stored as (inputs, outputs)."""
    embedding: bool

    def applied(self, weight: torch.Tensor, load: Load) -> torch.Tensor:
        import torch

        moved = load(self.second).float() @ load(self.first).float()
        delta = (moved.T if self.transposed else moved) * self.scaling
        if self.magnitude is None:
            # peft rounds the change of an embedding to the weight's dtype before it adds it, and that of a matrix not.
            weight += delta.to(weight.dtype) if self.embedding else delta
            return weight
        outputs_first = (weight.T if self.transposed else weight) + 1 * (delta.T if self.transposed else delta)
        factor = load(self.magnitude).float() / torch.linalg.norm(outputs_first, dim=1).to(outputs_first.dtype)
        del outputs_first
        merged: torch.Tensor = factor.view(*((1, -1) if self.transposed else (-1, 1))) * (weight + delta)
        return merged.to(weight.dtype)


_Step = _Whole | _Rows | _Bias | LowRank


def _fits(pattern: str, module: str) -> bool:
    """Whether a key of ``rank_pattern`` and the like means a module, as peft reads it."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error:
        return pattern == module


def _loaded(reader: CheckpointReader, entry: TensorEntry) -> torch.Tensor:
    return _tensor(reader.read(entry, 0, entry.elements), entry)


def _tensor(bits: NDArray[Any], entry: TensorEntry) -> torch.Tensor:
    import torch

    dtypes = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    return torch.from_numpy(bits.view(np.uint8)).view(dtypes[entry.dtype]).reshape(entry.shape)
