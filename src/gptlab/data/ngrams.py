"""Runs of N in a row, as numbers: of tokens or of words, to find what stands in two places."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BASE = np.uint64(0x9E3779B97F4A7C15)  # any large odd number; sums wrap at 2⁶⁴


def ngrams(ids: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """A number of each `n` ids in a row, (T,) → (T − n + 1,): equal for equal ones, and hardly ever for others."""
    count = max(0, len(ids) - n + 1)
    sums = np.zeros(count, dtype=np.uint64)
    for place in range(n):
        sums = sums * _BASE + ids[place : place + count] + np.uint64(1)
    return sums ^ (sums >> np.uint64(29))
