"""Keys and values of what a model has already read, so that a new token costs one position and not all of them."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """The cache of one batch, up to `capacity` positions; memory is taken when the first keys arrive.

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

    def update(self, layer_index: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of the next tokens; return all of the layer's, each (B, K, S, C)."""
        batch, heads, length, width = k_BKTC.shape
        keys, values = self._keys[layer_index], self._values[layer_index]
        if keys is None or values is None:
            keys = self._keys[layer_index] = k_BKTC.new_empty(batch, heads, self.capacity, width)
            values = self._values[layer_index] = torch.empty_like(keys)
        end = self.length + length
        keys[:, :, self.length : end] = k_BKTC
        values[:, :, self.length : end] = v_BKTC
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, length: int) -> None:
        """Count `length` tokens as read, after every layer has stored them."""
        self.length += length
