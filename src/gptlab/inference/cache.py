"""Keys and values of what a model has already read, so that a new token costs one position and not all of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FIRST = 512
_STEP = 64  # by which the room of rows that come and go is rounded


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

    def reserve(self, length: int) -> None:
        """Take memory for `length` more tokens now, and not when a layer stores them."""
        for held in (self._keys, self._values):
            held[:] = [None if t is None else self._grown(t, t, self.length + length) for t in held]

    def select(self, rows_B: Tensor) -> None:
        """Keep these rows of the batch, in this order; one may come twice."""
        for held in (self._keys, self._values):
            held[:] = [None if tensor is None else tensor[rows_B] for tensor in held]
        self.padding = None if self.padding is None else self.padding[rows_B]

    def advance(self, length: int) -> None:
        """Count `length` tokens as read, after every layer has stored them."""
        self.length += length


class RowCache(KVCache):
    """The cache of a batch whose rows come and go, one token a row at a time.

    Rows are aligned at their ends, as prompts of different lengths are: what a layer computes from the distance of two
    indices (windows, slopes, the key before) holds for each row whatever the others are. A row joins with what another
    cache has read of it; the places before its first token are padding, and zero or a number of its own, because a NaN
    that nobody sees would still spread.
    """

    def __init__(self, layers: int, *, device: torch.device | str = "cpu") -> None:
        super().__init__(layers, 0, device=device)
        self.lengths: list[int] = []  # how many tokens each row holds
        self.rows = 0
        self._end = 0  # where in the buffers all rows end

    def join(self, read: KVCache) -> None:
        """Add the rows that `read` holds, after those that are here."""
        new = [tensor for tensor in (*read._keys, *read._values) if tensor is not None]
        count, before = len(new[0]), len(self.lengths)
        own = [read.length] * count if read.padding is None else (read.length - read.padding).tolist()
        self._make_room(before + count, max(self.length, read.length), new)
        for held, tensor in zip(self._held(), new, strict=True):
            held[before : before + count, :, self._end - read.length : self._end] = tensor[:, :, : read.length]
        self._count([*self.lengths, *own])

    def reserve(self, length: int) -> None:
        """Nothing: there is always room for one token more."""

    def leave(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        last = len(self.lengths) - 1
        for held in self._held():
            held[row] = held[last]
            held[last] = 0
        lengths = list(self.lengths)
        lengths[row] = lengths[last]
        self._count(lengths[:-1])
        if not self.lengths:  # an idle server holds no memory
            self._end = 0
            self._keys[:] = self._values[:] = [None] * len(self._keys)

    def update(self, layer_index: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of every row's next token; return all of the layer's, each (B, K, S, its own width)."""
        keys, values = self._keys[layer_index], self._values[layer_index]
        assert keys is not None
        assert values is not None
        begin, end, rows = self._end - self.length, self._end + 1, self.rows
        keys[:rows, :, self._end : end] = k_BKTC
        values[:rows, :, self._end : end] = v_BKTC
        return keys[:rows, :, begin:end], values[:rows, :, begin:end]

    def advance(self, length: int) -> None:
        """Count one token a row as read, after every layer has stored it."""
        self._end += length
        self.length += length
        self.lengths = [held + length for held in self.lengths]
        self._make_room(len(self.lengths), self.length, self._held())

    def _held(self) -> list[Tensor]:
        return [tensor for tensor in (*self._keys, *self._values) if tensor is not None]

    def _count(self, lengths: list[int]) -> None:
        self.lengths, self.rows, self.length = lengths, len(lengths), max(lengths, default=0)
        padding = [self.length - length for length in lengths]
        self.padding = torch.tensor(padding, device=self.device) if any(padding) else None

    def _make_room(self, rows: int, longest: int, like: list[Tensor]) -> None:
        """See that `rows` rows of `longest` tokens find their places, and a token more, moving what is held where they
        do not. `like`: tensors of the heads and widths that are stored, of every layer's keys and then values."""
        held = self._held()
        room, places = (held[0].shape[2], len(held[0])) if held else (0, 0)
        if rows <= places and longest <= self._end < room:
            return
        if longest >= room or not held:
            room = -(-(longest + max(_STEP, longest // 2)) // _STEP) * _STEP
        places = places if rows <= places else 2 ** math.ceil(math.log2(rows))
        moved, now = [], slice(self._end - self.length, self._end)
        for number, tensor in enumerate(like):
            laid = tensor.new_zeros(places, tensor.shape[1], room, tensor.shape[3])
            if held:
                laid[: len(self.lengths), :, longest - self.length : longest] = held[number][
                    : len(self.lengths), :, now
                ]
            moved.append(laid)
        layers = len(self._keys)
        self._keys, self._values, self._end = list(moved[:layers]), list(moved[layers:]), longest
