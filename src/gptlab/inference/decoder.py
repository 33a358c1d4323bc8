"""Texts that go on together: what a model has not read of them is read, and gives the logits that follow.

A model sees at most `context_length` tokens. When a text outgrows that, the window's start moves on by half a context,
so that the cache is rebuilt once in half a context of tokens and not at each. Where the window starts is a function of
the text's length alone: with cache, without, alone or in a batch, a text gets the same logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptlab.inference.cache import KVCache


def window_start(length: int, context_length: int) -> int:
    """Where the visible window of a text of `length` tokens begins."""
    step = max(1, context_length // 2)
    return max(0, -(-(length - context_length) // step) * step)


@dataclass
class Reading:
    """What a model has read of several texts.

    Attributes:
        cache: a row for each text.
        hidden: states of the different ones among them, (N, T, D), aligned at their ends.
        row: of each text its row of `hidden`.
        padding: of each row of `hidden` how many places before its text are none.
    """

    cache: KVCache
    hidden: Tensor
    row: list[int]
    padding: list[int]

    def last(self) -> Tensor:
        """The state at the end of each text: (B, D)."""
        states = self.hidden[:, -1]
        return states if len(states) == len(self.row) else states[torch.tensor(self.row, device=states.device)]


def read_texts(
    model: nn.Module, texts: Sequence[Sequence[int]], device: torch.device, capacity: int | None = None
) -> Reading:
    """Read `texts` beside each other; those that are alike once. `capacity`: of the cache, by default as they need."""
    different = {text: number for number, text in enumerate(dict.fromkeys(map(tuple, texts)))}
    row = [different[tuple(text)] for text in texts]
    width = max(map(len, different))
    padding = [width - len(text) for text in different]
    pads = torch.tensor(padding, device=device) if any(padding) else None
    cache = KVCache(len(model.blocks), width if capacity is None else capacity, pads, device=device)
    # The id of a padding position does not matter; 0 always exists.
    ids = [[0] * pad + list(text) for pad, text in zip(padding, different, strict=True)]
    hidden = model(torch.tensor(ids, device=device), cache=cache)
    cache.advance(width)
    if len(different) < len(row):
        cache.select(torch.tensor(row, device=device))
    return Reading(cache, hidden, row, padding)


def seen_tokens(rows: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> Tensor:
    """True for the tokens that a row has: (B, V)."""
    seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
    for marks, row in zip(seen, rows, strict=True):
        marks[torch.tensor(list(row), device=device)] = True
    return seen


def penalized(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Logits (B, V) in fp32, those of tokens that are there already divided by `penalty` where positive and multiplied
    by it where negative.

    The idea is CTRL's (Keskar et al. 2019, arXiv:1909.05858, section 4.1), the case of negative ones transformers'.
    """
    logits = logits_BV.float()
    return torch.where(seen_BV, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


class Decoder:
    """Feeds the model what it has not read yet, and gives the logits that follow. `remember`: keep `seen`, True for the
    tokens that a row has, (B, V)."""

    def __init__(
        self,
        model: nn.Module,
        rows: list[list[int]],
        device: torch.device,
        use_cache: bool,
        *,
        remember: bool = False,
    ) -> None:
        self.model, self.rows, self.device, self.use_cache = model, rows, device, use_cache
        self.context: int = model.context_length
        self.cache: KVCache | None = None
        self.starts: list[int] = []
        self.seen = seen_tokens(rows, model.vocab_size, device) if remember else None

    def append(self, tokens: list[int]) -> None:
        """One more token for each row."""
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)
        if self.seen is not None:
            index = torch.arange(len(tokens), device=self.device)
            self.seen[index, torch.tensor(tokens, device=self.device)] = True

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; one may come twice."""
        if list(rows) == list(range(len(self.rows))):
            return
        self.rows = [list(self.rows[row]) for row in rows]
        self.starts = [self.starts[row] for row in rows]
        index = torch.tensor(rows, device=self.device)
        if self.cache is not None:
            self.cache.select(index)
        if self.seen is not None:
            self.seen = self.seen[index]

    def next_logits(self) -> Tensor:
        """Logits of the token after each row: (B, V)."""
        starts = [window_start(len(row), self.context) for row in self.rows]
        if self.cache is None or not self.use_cache or starts != self.starts:
            windows = [row[start:] for row, start in zip(self.rows, starts, strict=True)]
            read = read_texts(self.model, windows, self.device, self.context)
            self.cache, self.starts = read.cache, starts
            return self.model.logits(read.last())
        ids = torch.tensor([row[-1:] for row in self.rows], device=self.device)
        hidden = self.model(ids, cache=self.cache)
        self.cache.advance(1)
        return self.model.logits(hidden[:, -1])
