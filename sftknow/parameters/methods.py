"""Methods of repair: ways to move a fine-tuned model towards its base. Ten ship; others can be registered.

A method is a function from a `Part` of a tensor to its new values, float32, shape (count,). It sees the base's and the
fine-tuned values, a strength, and where the part lies; where it names an order (`sftknow.parameters.strategies`) also
which elements belong to the first ``strength`` of its region in that order, selected exactly over the whole region.
Values that the method leaves as fine-tuned, or takes from the base, are bit copies. Each part is made by itself, tensor
by tensor, whatever the size of the model. docs/extending/repair-method.md has a whole example.

Importing this module loads nothing heavy, since the command line offers the names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from sftknow.artifacts.levels import parse_level
from sftknow.errors import CheckpointError
from sftknow.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

THIRDS = ("first", "middle", "last")
"""Strengths of ``layers``: which third of the decoder layers becomes the base's."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Elements of one tensor that follow one another. Arrays are not to be written to."""

    base: Floats
    """The pretrained values, float32, shape (count,), exact."""
    tuned: Floats
    """The fine-tuned values, float32, shape (count,), exact."""
    strength: str
    """As it was asked for, such as ``20%``."""
    selected: NDArray[np.bool_] | None
    """Shape (count,): the first ``strength`` of the region in the method's order; None without an order."""
    name: str
    """Of the tensor in the fine-tuned checkpoint."""
    layer: int | None
    """Decoder layer, from 0; None outside of the layers."""
    layers: int
    """Decoder layers of the model."""

    @cached_property
    def share(self) -> float:
        """The strength as a number, 0 to 1.

        Raises:
            CheckpointError: it is no share.
        """
        return float(parse_level(self.strength))

    @property
    def chosen(self) -> NDArray[np.bool_]:
        """`selected` of a method that has an order."""
        if self.selected is None:
            raise CheckpointError(f"{self.name}: this method needs an order to select by; register it with one")
        return self.selected


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to move a model towards its base; register it in `METHODS`."""

    values: Callable[[Part], Floats]
    strengths: tuple[str, ...]
    """What is tried where nothing else is asked for, the weakest first."""
    title: str
    """In words, with ``{strength}`` where the strength belongs."""
    source: str
    """Whose method it is."""
    order: str | None = None
    """A strategy of `sftknow.parameters.strategies` by which `Part.selected` is chosen."""
    region: str = "all"
    """What it changes, as `sftknow.checkpoints.regions` says it; an output head that is tied and stored twice counts
    once."""
    shares: bool = True
    """Whether strengths are shares between 0 and 1, so that others may be asked for."""
    control: bool = False
    """Whether it is what others are compared with, and never chosen itself."""
    each: bool = False
    """Whether the order is cut in each tensor by itself, so that all of them lose the same share."""
    usual: bool = True
    """Whether it is among those that are tried where none is named."""


METHODS: Registry[Method] = Registry("method of repair", CheckpointError)


def between(tuned: Floats, base: Floats, weight: float) -> Floats:
    """(1 − weight) · tuned + weight · base in float32; weights below 0 lead away from the base.

    Bit by bit ``tuned`` at 0 and ``base`` at 1; elsewhere ``tuned`` where the two are equal.

    Args:
        tuned, base: shape (count,).
        weight: of the base, at most 1.
    """
    import numpy as np

    if weight in (0, 1):
        return base if weight else tuned
    difference = base - tuned
    near = weight <= 0.5
    made = tuned + np.float32(weight) * difference if near else base - np.float32(1 - weight) * difference
    return np.where(difference == 0, tuned, made)


def set_back(part: Part) -> Floats:
    """The selected elements become the base's."""
    import numpy as np

    return np.where(part.chosen, part.base, part.tuned)


def set_back_layers(part: Part) -> Floats:
    """The layers of one third become the base's."""
    if part.layer is None or part.strength != THIRDS[min(2, 3 * part.layer // max(1, part.layers))]:
        return part.tuned
    return part.base


def interpolate(part: Part) -> Floats:
    """(1 − strength) · tuned + strength · base."""
    return between(part.tuned, part.base, part.share)


def scale_layers(part: Part) -> Floats:
    """base + (α + (1 − α) · l ÷ (L − 1)) · (tuned − base) in layer l of L, and α outside of the layers.

    α is 1 − strength: the first layers, which hold what is general, go back most, the last one not at all.
    """
    depth = 0.0 if part.layer is None or part.layers < 2 else min(1.0, part.layer / (part.layers - 1))
    return between(part.tuned, part.base, part.share * (1 - depth))


def drop_and_rescale(part: Part) -> Floats:
    """The selected elements become the base's, the change of all others grows by 1 ÷ (1 − strength)."""
    import numpy as np

    if part.share >= 1:
        raise CheckpointError("dare at 100% drops every change and leaves none to rescale; give a strength below 100%")
    return np.where(part.chosen, part.base, between(part.tuned, part.base, -part.share / (1 - part.share)))


METHODS.register("relative")(
    Method(
        values=set_back,
        order="top",
        region="transformer",
        strengths=("5%", "20%", "40%", "60%"),
        title="{strength} of the parameters set back, those that changed most for their size",
        source="Zhang et al. 2025, arXiv:2509.16596, section 5",
    )
)
METHODS.register("absolute")(
    Method(
        values=set_back,
        order="absolute",
        region="transformer",
        strengths=("5%", "20%", "40%"),
        title="{strength} of the parameters set back, those that changed most",
        source="the same with |s − p| in place of the relative change",
    )
)
METHODS.register("layers")(
    Method(
        values=set_back_layers,
        region="transformer",
        strengths=THIRDS,
        shares=False,
        title="the {strength} third of the layers set back",
        source="Zhang et al. 2025, arXiv:2509.16596, Table 11",
    )
)
METHODS.register("interpolation")(
    Method(
        values=interpolate,
        strengths=("25%", "50%", "75%"),
        title="all weights moved {strength} of the way to the base",
        source="WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903",
    )
)
METHODS.register("lines")(
    Method(
        values=scale_layers,
        strengths=("50%", "75%", "100%"),
        title="the change of each layer scaled: kept whole in the last one, {strength} less in the first",
        source="LiNeS, Wang et al. 2024, arXiv:2410.17146",
    )
)
METHODS.register("trim")(
    Method(
        values=set_back,
        order="trim",
        strengths=("50%", "80%", "90%"),
        title="{strength} of the parameters set back, those that changed least",
        source="the trimming of TIES-Merging, Yadav et al. 2023, arXiv:2306.01708",
    )
)
METHODS.register("dare")(
    Method(
        values=drop_and_rescale,
        order="random",
        strengths=("50%", "80%"),
        title="{strength} of the parameters set back at random, the change of the others scaled up",
        source="DARE, Yu et al. 2024, arXiv:2311.03099",
    )
)
METHODS.register("random")(
    Method(
        values=set_back,
        order="random",
        region="transformer",
        strengths=("5%", "20%", "40%", "60%"),
        control=True,
        title="{strength} of the parameters set back at random",
        source="the control: what any step back to the base would give",
    )
)
METHODS.register("per-tensor")(
    Method(
        values=set_back,
        order="top",
        each=True,
        usual=False,
        region="transformer",
        strengths=("5%", "20%", "40%", "60%"),
        title="{strength} of the parameters of each tensor set back, those that changed most for their size",
        source="the relative change ranked within each tensor in place of the whole model",
    )
)
METHODS.register("smallest")(
    Method(
        values=set_back,
        order="smallest",
        usual=False,
        region="transformer",
        strengths=("5%", "20%", "40%", "60%"),
        title="{strength} of the parameters set back, the smallest ones",
        source="what the relative change divides by, alone: a check of the ranking",
    )
)
