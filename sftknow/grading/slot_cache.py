"""A key-value cache whose rows come and go without the rest being copied.

transformers' `DynamicCache` copies every row at every step and again whenever rows are selected. Here each layer holds
one buffer of slots; a step writes one column, and a row that splits or moves copies itself alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sftknow.dependencies import needs, unsuitable

with needs("transformers"):
    from transformers.cache_utils import Cache, CacheLayerMixin

Ints = npt.NDArray[np.int64]


def on_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array as a tensor there. A GPU fetches it when it gets to it, while the program goes on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass
class Window:
    """The slots that the next forward pass works on, and how many tokens each of them holds already."""

    first: int = 0
    stop: int = 0
    length: int = 0
    slots: int = 0
    columns: int = 0
    """Tokens that a slot has room for."""


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer: two buffers of shape [slots, heads, columns, head_dim]."""

    is_sliding = False  # sliding-window models see the whole buffer; transformers' mask hides what is out of the window

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        # Reserved whole: on a CPU, memory that no row ever reaches is never really taken.
        self.keys = self._buffer(key_states)
        self.values = self._buffer(value_states)
        self.is_initialized = True

    def _buffer(self, states: torch.Tensor) -> torch.Tensor:
        return states.new_empty((self.window.slots, states.shape[1], self.window.columns, states.shape[3]))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new columns of the window's slots; return all columns of these slots, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window = self.window
        slots, end = slice(window.first, window.stop), window.length + key_states.shape[-2]
        self.keys[slots, :, window.length : end] = key_states
        self.values[slots, :, window.length : end] = value_states
        return self.keys[slots, :, :end], self.values[slots, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.window.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.window.length

    def get_max_length(self) -> int:
        return -1

    def copy_slots(self, source: torch.Tensor, target: torch.Tensor) -> None:
        used = slice(0, self.window.length)
        self.keys[target, :, used] = self.keys[source, :, used]
        self.values[target, :, used] = self.values[source, :, used]


class SlotCache:
    """The cache of a batch in which every row holds the same number of tokens.

    Args:
        slots: rows that there is room for.
        columns: tokens that a row can grow to.

    Attributes:
        cache: what the model is given as its key-value cache.
        window: what the next forward pass works on; set by `look`.

    Raises:
        DependencyError: transformers asks more of the layers of a cache than `SlotLayer` has.
    """

    def __init__(self, *, slots: int, columns: int) -> None:
        self.window = Window(slots=slots, columns=columns)
        try:
            SlotLayer(self.window)  # transformers makes them in the middle of a model's forward
            # The model names its layers on the first pass, so that nothing need be known about its config.
            self.cache = Cache(layer_class_to_replicate=partial(SlotLayer, self.window))
        except TypeError as error:
            raise unsuitable("transformers", f"a cache of layers as sftknow makes them ({error})") from error

    def look(self, first: int, stop: int, length: int) -> None:
        """Make slots first … stop, which hold so many tokens, those that the next forward pass works on."""
        self.window.first, self.window.stop, self.window.length = first, stop, length

    def copy(self, source: Ints, target: Ints) -> None:
        """Copy the window's length of tokens from slots to slots; all are read before any is written."""
        if not len(source) or not self.cache.layers:
            return
        places: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer in self.cache.layers:  # a large model's layers may lie on several devices
            device = layer.keys.device
            if device not in places:
                places[device] = on_device(source, device), on_device(target, device)
            layer.copy_slots(*places[device])

    def reassign(self, parents: Ints) -> Ints:
        """Give every child row a slot from 0 on with its parent's content, copying as little as can be.

        Args:
            parents: slot of each child's parent, shape [children], ascending.

        Returns:
            The slot of each child, shape [children]: a permutation of 0 … children - 1.
        """
        first_child = np.ones(len(parents), dtype=bool)
        first_child[1:] = parents[1:] != parents[:-1]
        stays = first_child & (parents < len(parents))
        slots = parents.copy()
        slots[~stays] = np.setdiff1d(np.arange(len(parents)), parents[stays], assume_unique=True)
        # No source is overwritten by another: a slot below the count whose row lives on keeps that row.
        self.copy(parents[~stays], slots[~stays])
        return slots
