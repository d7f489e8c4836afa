"""Where transformers' loader puts the tensors of a checkpoint: its own renamings and packings, followed by name.

A checkpoint on the Hub may name its tensors otherwise than the model in memory does, or keep the experts of a layer
apart that the model holds in one parameter. What is followed here are renamings, and packings in which every stored
tensor is one stretch of the parameter's elements: experts stacked, gate and up projection within each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_UNBUILDABLE = (
    OSError,
    ValueError,
    KeyError,
    ImportError,
    RuntimeError,
    AttributeError,
    TypeError,
    NotImplementedError,
)
"""What transformers raises for a configuration that it knows no model of, or none that it can make without weights."""

_CLASSES = (
    ("other", re.compile(r"HyperConnection|Residual")),
    ("attention", re.compile(r"(?:Attention|Attn|DeltaNet|MLA)(?!.*(?:Layer|Model)$)")),
    ("mixer", re.compile(r"Mamba|Mixer|SSM|Recurrent(?:Block|Layer)|Conv")),
    ("mlp", re.compile(r"(?:MLP|Mlp|FeedForward|FFN|Moe|MoE|MOE|Expert|Router)(?!.*(?:Layer|Model)$)")),
)
"""What the classes of modules within a layer say; the outermost one that says anything decides."""


@dataclass(frozen=True, kw_only=True)
class Landing:
    """Where a stored tensor lies in the loaded model."""

    parameter: str
    first: int
    """Its first element within the parameter, row-major; the others follow it."""
    whole: bool
    """Whether it is all of the parameter."""


def empty_model(folder: Path) -> Any | None:
    """The model that a folder's config.json names, without weights (on torch's meta device).

    Returns:
        None where transformers has no such model of its own, or cannot make it so.
    """
    import torch
    import transformers

    from sftknow.models.loading import quiet_libraries

    with quiet_libraries():
        try:
            config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
            named = next(iter(getattr(config, "architectures", None) or ()), None)
            kind = getattr(transformers, str(named), None) or transformers.AutoModelForCausalLM
            with torch.device("meta"):
                return kind._from_config(config) if hasattr(kind, "_from_config") else kind.from_config(config)
        except _UNBUILDABLE:
            return None


class LoaderNames:
    """What the loader makes of a checkpoint's names for one model.

    Args:
        model: a transformers model, with or without weights.
    """

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        transforms = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
        self._state = dict(model.state_dict(keep_vars=True))
        self._model = model
        self._prefix = model.base_model_prefix
        left_out = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
        self._left_out = [re.compile(pattern) for pattern in left_out]

    def drops(self, name: str) -> bool:
        """Whether the class itself says that it leaves such a tensor out when a checkpoint has it."""
        return any(pattern.search(name) for pattern in self._left_out)

    def parts(self, shapes: Mapping[str, Sequence[int]], names: Sequence[str]) -> dict[str, str]:
        """What part of the model each of these tensors is, by the classes of the modules that hold it.

        Args:
            shapes: of all tensors of the checkpoint, by name.
            names: of those that are asked for.

        Returns:
            ``attention``, ``mixer``, ``mlp``, ``norm``, ``buffer``, ``embedding`` or ``other``; nothing for a tensor
            that the model does not take.
        """
        landed = self.landings(shapes)
        places = {name: landing.parameter for name in names if (landing := landed[name]) is not None}
        return {name: self.part(parameter) for name, parameter in places.items()}

    def part(self, parameter: str) -> str:
        """As `parts`, for a parameter or buffer of the model by its own name."""
        from torch import nn

        chain = [self._model]
        for step in parameter.split(".")[:-1]:
            chain.append(getattr(chain[-1], step))
        owner = chain[-1]
        if not isinstance(self._state[parameter], nn.Parameter):
            return "buffer"
        if "norm" in type(owner).__name__.lower() and not isinstance(owner, nn.Embedding):
            return "norm"
        lists = [i for i, module in enumerate(chain) if isinstance(module, nn.ModuleList) and _of_layers(module)]
        if not lists:
            head = self._model.get_output_embeddings()
            return "embedding" if isinstance(owner, nn.Embedding) or owner is head else "other"
        within = chain[lists[-1] + 2 :]  # the list itself and the layer tell nothing
        for module in within:
            for part, pattern in _CLASSES:
                if pattern.search(type(module).__name__):
                    return part
        return "mlp" if within else "other"

    def landings(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Landing | None]:
        """Where each tensor goes; None for one that the model does not take, or whose packing is not followed.

        Args:
            shapes: of all tensors of the checkpoint, by name.
        """
        from transformers.core_model_loading import rename_source_key

        found: dict[str, Landing | None] = {}
        packed: dict[tuple[str, int], dict[str, list[str]]] = {}
        for name in shapes:
            target, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self._state)
            if pattern is None or pattern == target:
                there = target in self._state and tuple(self._state[target].shape) == tuple(shapes[name])
                found[name] = Landing(parameter=target, first=0, whole=True) if there else None
                continue
            found[name] = None
            number = next(i for i, entry in enumerate(self._converters) if pattern in entry.source_patterns)
            packed.setdefault((target, number), {}).setdefault(pattern, []).append(name)
        for (target, number), sources in packed.items():
            found |= self._packed(target, self._converters[number], sources, shapes)
        return found

    def _packed(
        self, target: str, converter: Any, sources: Mapping[str, list[str]], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, Landing | None]:
        """Experts stacked along the first dimension, of several kinds one after another within each."""
        kinds = [(type(operation).__name__, getattr(operation, "dim", None)) for operation in converter.operations]
        if kinds not in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
            return {}
        rows = [sorted(sources.get(pattern, ()), key=_by_number) for pattern in converter.source_patterns]
        sizes = [math.prod(shapes[row[0]]) if row else 0 for row in rows]
        alike = all(len(row) == len(rows[0]) for row in rows) and all(
            math.prod(shapes[name]) == size for row, size in zip(rows, sizes, strict=True) for name in row
        )
        parameter = self._state.get(target)
        if parameter is None or not alike or parameter.numel() != len(rows[0]) * sum(sizes):
            return {}
        return {
            name: Landing(parameter=target, first=expert * sum(sizes) + sum(sizes[:kind]), whole=False)
            for kind, row in enumerate(rows)
            for expert, name in enumerate(row)
        }


def _of_layers(modules: Any) -> bool:
    """Whether a list of modules is one of layers, and not of experts, projections or the like."""
    return len(modules) > 0 and type(modules[0]).__name__.endswith(("Layer", "Block"))


def _by_number(name: str) -> list[str | int]:
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))]


def loader_names(folder: Path) -> LoaderNames | None:
    """`LoaderNames` of the model that a folder's config.json names; None where transformers has none of its own."""
    model = empty_model(folder)
    try:
        return None if model is None else LoaderNames(model)
    except _UNBUILDABLE:
        return None


def landings_in(model: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, Landing | None]:
    """Where the loader puts a checkpoint's tensors in this model; nothing for a model that is not transformers' own."""
    try:
        return LoaderNames(model).landings(shapes)
    except _UNBUILDABLE:
        return {}
