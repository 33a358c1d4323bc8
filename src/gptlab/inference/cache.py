"""Keys and values of what a model has already read, so that a new token costs one position and not all of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FIRST = 512


class KVCache:
    """The cache of one batch, up to `capacity` positions. Memory is taken as they come, doubling from `_FIRST`: a model
    that could see 131,072 tokens takes no memory for those that a text does not have.

    `padding_B`: how many positions at the left of each row are padding (prompts of different lengths are aligned at
    their ends); None where there is none. Padding is never seen, and positions count from the first real token.
    """

    def __init__(
        self, layers: int, capacity: int, padding_B: Tensor | None = None, *, device: torch.device | str = "cpu"
    ) -> None:
        self.capacity, self.padding, self.length, self.device = capacity, padding_B, 0, device
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers

    def positions(self, length: int) -> Tensor:
        """Positions of the next `length` tokens: (T,), or (B, T) where rows are padded."""
        index = torch.arange(self.length, self.length + length, device=self.device)
        return index if self.padding is None else (index[None] - self.padding[:, None]).clamp(min=0)

    def mask(self, length: int) -> Tensor | None:
        """True where a query may see a key, (B or 1, 1, T, S); None where causality (or a lone query) says it all."""
        if self.padding is None and (length == 1 or self.length == 0):
            return None
        query = torch.arange(self.length, self.length + length, device=self.device)[:, None]
        key = torch.arange(self.length + length, device=self.device)[None]
        if self.padding is None:
            return (key <= query)[None, None]
        real = key >= self.padding[:, None, None]
        # A padding query sees itself: softmax over nothing would be NaN, and NaN spreads.
        return ((key <= query) & real | (key == query))[:, None]

    def starts(self, length: int) -> Tensor:
        """True where a row's first real token stands, over what is held and the next `length`: (B or 1, S)."""
        key = torch.arange(self.length + length, device=self.device)[None]
        return key == 0 if self.padding is None else key == self.padding[:, None]

    def update(self, layer_index: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of the next tokens; return all of the layer's, each (B, K, S, its own width)."""
        end = self.length + k_BKTC.shape[2]
        keys = self._keys[layer_index] = self._grown(self._keys[layer_index], k_BKTC, end)
        values = self._values[layer_index] = self._grown(self._values[layer_index], v_BKTC, end)
        keys[:, :, self.length : end] = k_BKTC
        values[:, :, self.length : end] = v_BKTC
        return keys[:, :, :end], values[:, :, :end]

    def _grown(self, held: Tensor | None, new_BKTC: Tensor, end: int) -> Tensor:
        """`held`, moved to twice the room where `end` positions do not fit."""
        if held is not None and end <= held.shape[2]:
            return held
        batch, heads, _, width = new_BKTC.shape
        room = min(self.capacity, max(_FIRST, 2 ** math.ceil(math.log2(end))))
        larger = new_BKTC.new_empty(batch, heads, room, width)
        if held is not None:
            larger[:, :, : self.length] = held[:, :, : self.length]
        return larger

    def select(self, rows_B: Tensor) -> None:
        """Keep these rows of the batch, in this order; one may come twice."""
        for held in (self._keys, self._values):
            held[:] = [None if tensor is None else tensor[rows_B] for tensor in held]
        self.padding = None if self.padding is None else self.padding[rows_B]

    def advance(self, length: int) -> None:
        """Count `length` tokens as read, after every layer has stored them."""
        self.length += length
