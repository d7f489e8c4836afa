"""Tensor names: which layer and module a tensor belongs to, and which tensors make up a region.

Names of Llama, Qwen, Mistral, Gemma, GPT-2, GPT-NeoX and OPT checkpoints are understood, with or without experts
(MoE), and inside a multimodal wrapper, whose vision and audio towers are no part of the decoder.

Regions, several joined by commas:

    transformer   the decoder layers without their norms (the authors' region; the default)
    attention     of those, the attention projections, self-attention, cross-attention and linear attention
    mlp           of those, the feed-forward projections, experts and router included; state-space, recurrent and
                  convolution mixers are in neither of the two
    embedding     token and position embeddings and the output head
    all           every parameter, norms included
    re:PATTERN    every parameter whose name contains a match of PATTERN (takes the rest of the text, commas too)

Most names say what a tensor is. Of those that do not (``mixer.in_proj``) the classes of the modules that
hold it decide, where transformers has the model (`sftknow.models.loader_names`), and the name of the projection else.

Biases belong to the module that they are added in. Buffers that old checkpoints store (``rotary_emb.inv_freq``, the
causal masks of GPT-2 and GPT-NeoX, position ids, scales of a quantised cache, an expert router's correction) are no
parameters and belong to no region; nor are layers that predict further tokens (MTP) part of the decoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sftknow.errors import CheckpointError

OUTSIDE = "outside"
"""Stands for the layer of a tensor that belongs to none, such as an embedding, in counts by layer."""

OUTPUT_HEADS = ("lm_head.weight", "embed_out.weight")

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)\.(.+)$")
_TOWER = re.compile(
    r"(?:^|\.)(?:mtp|[^.]*(?:vision|visual|video|audio|image|projector|perceiver|resampler|qformer|connector)[^.]*)\."
)
_NORM = re.compile(r"norm|^ln(?:_|\d|$)|_ln$", re.IGNORECASE)
_BUFFER = re.compile(
    r"(?:^|\.)(?:rotary_emb\.(?:original_)?inv_freq|(?:attn|attention|self_attn)\.(?:bias|masked_bias)|position_ids"
    r"|e_score_correction_bias|layer_scalar|[kvq]_scale)$"
)
_PARTS = (
    ("other", re.compile(r"_hc$|residual", re.IGNORECASE)),
    ("mixer", re.compile(r"mamba|ssm|recurrent|conv", re.IGNORECASE)),
    ("attention", re.compile(r"attn|attention", re.IGNORECASE)),
    (
        "mlp",
        re.compile(r"mlp|ffn|^ff$|^moe|_moe$|expert|feed_?forward|^router$|^fc\d?$|^fc_(?:in|out)$", re.IGNORECASE),
    ),
)
"""What the names of modules within a layer say; the outermost one that says anything decides."""
_LEAVES = (
    ("attention", re.compile(r"^(?:[qkvo]_proj|qkv_proj|query_key_value|out_proj)$")),
    ("mlp", re.compile(r"^(?:up|down|gate|gate_up)_proj$")),
)
"""What the name of a projection says where nothing else does."""
_EMBEDDING = re.compile(r"^(?!.*(?:proj|patch|mapping)).*embed|^(?:wte|wpe|lm_head)$")
_NAMED = ("transformer", "attention", "mlp", "embedding", "all")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in a model a tensor sits."""

    layer: int | None
    """Index of the decoder layer; None outside of the layers."""
    module: str
    """Within the layer, such as ``mlp.down_proj``: without ``.weight`` or ``.bias``, experts taken together."""
    norm: bool
    buffer: bool


@dataclass(frozen=True, kw_only=True)
class Region:
    """Which tensors are compared. Made by `parse_region`."""

    names: tuple[str, ...]
    """Named regions, united."""
    pattern: str | None
    layers: frozenset[int] | None
    """Only these layers; None for all, and for what lies outside of the layers."""
    ignored: str | None = None
    """Names that contain a match of this regular expression are in no region."""
    depth: int | None = None
    """How many decoder layers the model has; layers of higher numbers, which predict further tokens, are none of it."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """By name what a tensor is whose name does not say it; see `sftknow.models.loader_names.LoaderNames.part`."""

    def __contains__(self, name: str) -> bool:
        place = place_of(name)
        known = self.parts.get(name)
        if (
            place.buffer
            or known == "buffer"
            or self.ignores(name)
            or (self.layers is not None and place.layer not in self.layers)
        ):
            return False
        if self.pattern is not None and re.search(self.pattern, name):
            return True
        part = known or _part_by_name(name, place) or _part_by_leaf(place)
        return "all" in self.names or (not self.beyond(place) and any(_holds(r, place, part) for r in self.names))

    def ignores(self, name: str) -> bool:
        """Whether it was asked to leave this tensor alone."""
        return self.ignored is not None and re.search(self.ignored, name) is not None

    def beyond(self, place: Place) -> bool:
        """Whether it lies in a layer that comes after those of the decoder."""
        return self.depth is not None and place.layer is not None and place.layer >= self.depth


def place_of(name: str) -> Place:
    """The layer and module of a tensor, from its name alone."""
    found = None if _TOWER.search(name) else _LAYER.search(name)
    inside = found.group(2) if found else name
    parts = [part for part in re.sub(r"\.(?:weight|bias)$", "", inside).split(".") if not part.isdigit()]
    return Place(
        layer=int(found.group(1)) if found else None,
        module=".".join(parts) or inside,
        norm=any(_NORM.search(part) for part in (parts or [inside])[-2:]),
        buffer=_BUFFER.search(name) is not None,
    )


def named_part(name: str) -> str | None:
    """What part of a model a tensor is by its name: as `Region.parts`, or ``outside`` in an encoder of something else.

    None where the name does not say it.
    """
    place = place_of(name)
    if place.buffer:
        return "buffer"
    return "outside" if _TOWER.search(name) and not place.norm else _part_by_name(name, place)


def _part_by_name(name: str, place: Place) -> str | None:
    if place.norm or _TOWER.search(name):
        return "norm" if place.norm else "other"
    if place.layer is None:
        return "embedding" if _EMBEDDING.search(place.module.rsplit(".", 1)[-1]) else None
    modules = place.module.split(".")
    if len(modules) == 1 and not name.endswith((".weight", ".bias")):
        return "other"  # a parameter of the layer itself
    for module in modules:
        for part, pattern in () if _NORM.search(module) else _PARTS:
            if pattern.search(module):
                return part
    return None


def _part_by_leaf(place: Place) -> str:
    leaf = place.module.rsplit(".", 1)[-1]
    if place.layer is None:
        return "other"
    return next((part for part, pattern in _LEAVES if pattern.search(leaf)), "other")


def _holds(region: str, place: Place, part: str) -> bool:
    if region == "embedding":
        return place.layer is None and part == "embedding"
    if place.layer is None or part in ("norm", "buffer"):
        return False
    return region in ("transformer", part)


def parse_region(region: str, layers: str | None = None, ignored: str | None = None) -> Region:
    """Understand a region and a range of layers, as the module's docstring and `parse_layers` describe them.

    Args:
        region: its names, or an expression.
        layers: a range; None for all.
        ignored: a regular expression of names that belong to no region.

    Raises:
        CheckpointError: an unknown region, a regular expression or a range that cannot be read.
    """
    head, marker, pattern = region.partition("re:")
    names = tuple(part.strip() for part in head.split(",") if part.strip())
    unknown = [name for name in names if name not in _NAMED]
    if unknown or not (names or marker):
        raise CheckpointError(f"unknown region {region!r}; use {', '.join(_NAMED)} or re:PATTERN, joined by commas")
    for what, expression in (("region's", pattern if marker else ""), ("ignored names'", ignored or "")):
        try:
            re.compile(expression)
        except re.error as error:
            raise CheckpointError(f"the {what} regular expression {expression!r} cannot be read: {error}") from None
    return Region(
        names=names,
        pattern=pattern if marker else None,
        layers=None if layers is None else parse_layers(layers),
        ignored=ignored,
    )


def parse_layers(text: str) -> frozenset[int]:
    """Layer indices from 0: ``0-3``, ``5``, ``0-3,28-31``; both ends of a range are included.

    Raises:
        CheckpointError: the text is not of that form.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:\s*-\s*(\d{1,5}))?\s*", part)
        if not match or (match.group(2) and int(match.group(2)) < int(match.group(1))):
            raise CheckpointError(f"cannot read the layers {text!r}; write them like 0-3 or 0-3,28-31, counted from 0")
        found.update(range(int(match.group(1)), int(match.group(2) or match.group(1)) + 1))
    return frozenset(found)


def natural_order(names: Sequence[str]) -> list[str]:
    """Names sorted with their numbers as numbers, so that layer 2 comes before layer 10. A total order."""

    def key(name: str) -> tuple[list[str | int], str]:
        # re.split with one group alternates text and digits, so equal places always hold equal types.
        return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))], name

    return sorted(names, key=key)
