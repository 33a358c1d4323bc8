"""A mixture of your own: every data set by the square root of its size. Edit from here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class MyIdea:
    """`sources`: name → tokens. Called with the progress of training, from 0 to 1."""

    slot = "mix"

    def __init__(self, sources: Mapping[str, int], *, power: float = 0.5) -> None:
        sizes = np.array(list(sources.values()), dtype=np.float64) ** power
        self.weights = sizes / sizes.sum()

    def __call__(self, progress: float) -> np.ndarray:
        """One weight a source, in their order, summing to 1."""
        return self.weights
