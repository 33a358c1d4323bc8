"""Byte-pair encoding (Sennrich, Haddow and Birch, 2016, https://arxiv.org/abs/1508.07909), merge by merge.

What a merge is, exactly, since implementations differ:

* the count of a pair is the number of its occurrences in the text, overlapping ones included: `aaaa` has
  three `aa`;
* the most frequent pair is merged; among equally frequent ones the one with the smallest left id, then right
  id;
* its occurrences are replaced from left to right without overlap (`aaaaa` → `aa aa a`), and counts are again
  those of the text that results.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


class Merge(NamedTuple):
    """Two ids that become one, and how often they stand side by side."""

    left: int
    right: int
    times: int


def frequent_merges(words: Sequence[npt.NDArray[Any]], weights: Integers, first_id: int) -> Iterator[Merge]:
    """The merges of byte-pair encoding over `words` (arrays of ids below `first_id`) that occur `weights` times each,
    as they are found. They make the ids from `first_id` on.

    All words lie in one array with -1 around each, linked to their neighbours, and each pair knows where it may occur,
    so a merge touches only its occurrences. Counts in the heap are upper bounds (a pair only loses occurrences once
    both its ids exist) and are corrected when they come to the top.
    """
    lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    symbols: Integers = np.full(int(lengths.sum()) + len(words) + 1, -1, dtype=np.int64)
    inside = np.ones(len(symbols), dtype=bool)
    inside[np.concatenate([[0], np.cumsum(lengths + 1)])] = False
    if words:
        symbols[inside] = np.concatenate(words)
    weight_at: Integers = np.zeros(len(symbols), dtype=np.int64)
    weight_at[inside] = np.repeat(weights, lengths)
    after: Integers = np.arange(1, len(symbols) + 1, dtype=np.int64)
    after[-1] = len(symbols) - 1
    before: Integers = np.arange(-1, len(symbols) - 1, dtype=np.int64)
    before[0] = 0

    def pairs_at(positions: Integers) -> Iterator[tuple[int, int, Integers]]:
        """(pair as one number, its weighted count, its positions) for the pairs that start at `positions`."""
        left, right = symbols[positions], symbols[after[positions]]
        valid = (left >= 0) & (right >= 0)
        positions, keys = positions[valid], (left[valid] << 32) | right[valid]
        order = np.argsort(keys, kind="stable")
        positions, keys = positions[order], keys[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        if len(starts) == 0:
            return
        sums = np.add.reduceat(weight_at[positions], starts)
        yield from zip(keys[starts].tolist(), sums.tolist(), np.split(positions, starts[1:]), strict=True)

    count: dict[int, int] = {}
    places: dict[int, Integers] = {}
    for key, total, positions in pairs_at(np.flatnonzero(inside)):
        count[key], places[key] = total, positions
    heap = [(-total, key) for key, total in count.items()]
    heapq.heapify(heap)
    new_id = first_id
    while heap:
        bound, key = heapq.heappop(heap)
        if count[key] != -bound:
            if count[key] > 0:
                heapq.heappush(heap, (-count[key], key))
            continue
        left_id, right_id = key >> 32, key & 0xFFFFFFFF
        at = places.pop(key)
        at = at[(symbols[at] == left_id) & (symbols[after[at]] == right_id)]
        if left_id == right_id:
            at = _without_overlap(at, after)
        second = after[at]
        for old, total, _ in pairs_at(np.unique(np.concatenate([before[at], at, second]))):
            count[old] -= total
        symbols[at], symbols[second] = new_id, -2
        after[at] = after[second]
        before[after[at]] = at
        for new, total, positions in pairs_at(np.unique(np.concatenate([before[at], at]))):
            count[new], places[new] = total, positions
            heapq.heappush(heap, (-total, new))
        new_id += 1
        yield Merge(left_id, right_id, -bound)


def _without_overlap(at: Integers, after: Integers) -> Integers:
    """Of the ascending positions `at` of a pair of twins, those that merging from left to right takes: in each run of
    touching ones the first, the third, the fifth…"""
    index = np.arange(len(at))
    starts = np.ones(len(at), dtype=bool)
    starts[1:] = after[at[:-1]] != at[1:]
    taken: Integers = at[(index - np.maximum.accumulate(np.where(starts, index, 0))) % 2 == 0]
    return taken
