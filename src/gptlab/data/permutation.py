"""A keyed shuffle of [0, n) that needs no memory: any position can be asked for at once, in any order.

A balanced Feistel network permutes the 2^(2k) numbers of the smallest even-bit block that holds n; numbers that land
outside [0, n) are sent through again until they fall inside ("cycle walking"), which keeps it a bijection on [0, n).
Both ideas are from Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA
2002. The round function is the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a shuffle has
to look random, not to resist an adversary.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def hash64(*values: int) -> int:
    """A 64-bit hash of `values` and their order."""
    state = 0
    for value in values:
        state = _mix_int((state ^ (value & _MASK)) + _GOLDEN)
    return state


def permute(index: NDArray[np.int64], n: int, key: int) -> NDArray[np.int64]:
    """Apply the shuffle of [0, n) that `key` chooses to each entry of `index`.

    Args:
        index: any shape, values in [0, n).
        n: size of the domain, 1 to 2^62.
        key: any 64-bit number; each gives another permutation.
    """
    if not 1 <= n <= 1 << 62:
        raise ValueError(f"a permutation needs a domain of 1 to 2^62 numbers, not {n}")
    # At least 6 bits: the network mixes too little in smaller blocks, and walking from 64 down to n is cheap.
    half_bits = max(3, ((n - 1).bit_length() + 1) // 2)
    keys = [np.uint64(hash64(key, number)) for number in range(ROUNDS)]
    walked: NDArray[np.uint64] = _feistel(index.astype(np.uint64).reshape(-1), half_bits, keys)
    outside = np.flatnonzero(walked >= n)
    while outside.size:
        walked[outside] = _feistel(walked[outside], half_bits, keys)
        outside = outside[walked[outside] >= n]
    return walked.astype(np.int64).reshape(index.shape)


def _feistel(block: NDArray[np.uint64], half_bits: int, keys: list[np.uint64]) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = block >> shift, block & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix_int(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
