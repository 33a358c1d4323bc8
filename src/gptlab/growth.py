"""How the batch grows: the number of a step → how many batches of `train.batch_tokens` it takes. Home of the slot
`growth`.

Steps are numbered in batches: a step that begins at batch s and takes n is followed by the one at s + n. So the length
of the run, the learning rate and the order of the data are what they are without growth, at the same token.

What a growth remembers between steps is numbers in its attribute `state`, which checkpoints keep.
"""

from __future__ import annotations

import math

from torch import Tensor

from gptlab.config import require_range
from gptlab.data.permutation import hash64


class Fixed:
    """The same at every step: `batches`."""

    slot = "growth"

    def __init__(self, *, batches: int = 1) -> None:
        require_range("train.growth", "at least 1", batches=batches)
        self.batches = batches

    def __call__(self, step: int) -> int:
        """How many batches the step takes that begins at batch `step`, counted from 0."""
        return self.batches


class Ramp:
    """In a straight line, rounded down, from one batch to `most` over the first `tokens` of the run, and `most` from
    there on (Brown et al. 2020, GPT-3, arXiv:2005.14165, appendix B: from 32k tokens to the full size over the first 4
    to 12 billion)."""

    slot = "growth"

    def __init__(self, batch_tokens: int, *, tokens: int, most: int) -> None:
        require_range("train.growth", "at least 1", tokens=tokens, most=most)
        self.batch_tokens, self.tokens, self.most = batch_tokens, tokens, most

    def __call__(self, step: int) -> int:
        """How many batches the step takes that begins at batch `step`, counted from 0."""
        return min(self.most, 1 + (self.most - 1) * step * self.batch_tokens // self.tokens)


class GradientNorm:
    """As many, up to `most`, as keep the norm of the gradient on its way down (Balsam 2023, hlb-GPT 0.4,
    https://github.com/tysam-code/hlb-gpt): noise that falls no more is averaged over more tokens.

    Expected of the norm at the k-th step is `scale` · √P · (k · P · ln P)^−`power` for P parameters; `power` null:
    0.677 · (ln P)^−0.2, fitted there between 46 million parameters and 1.5 billion. At every `every`-th step the number
    of batches, which is no whole one, is multiplied by 1 + `every` · `rate` · (norm / expected − 1); a step takes the
    whole number below or above it, by a draw in proportion that is a function of the step. A norm that is not finite
    says nothing.

    Reading the norm waits for the device: once in `every` steps.
    """

    slot = "growth"

    def __init__(
        self,
        parameters: int,
        *,
        most: int = 16,
        rate: float = 0.1,
        every: int = 5,
        scale: float = 1.0,
        power: float | None = None,
    ) -> None:
        require_range("train.growth", "at least 1", most=most, every=every)
        require_range("train.growth", "above 0", rate=rate, scale=scale)
        require_range("train.growth", "at least 0", power=power)
        self.most, self.rate, self.every, self.scale = most, rate, every, scale
        self.parameters = parameters
        self.power = 0.677 * math.log(parameters) ** -0.2 if power is None else power
        self.state: dict[str, float] = {"steps": 0, "batches": 1.0}

    def __call__(self, step: int) -> int:
        """How many batches the step takes that begins at batch `step`, counted from 0."""
        return int(self.state["batches"] + (hash64(step) >> 40) / 2**24)

    def observe(self, gradient_norm: Tensor) -> None:
        """Take note of a step: of its gradient's norm, a scalar on the device."""
        self.state["steps"] += 1
        if self.state["steps"] % self.every:
            return
        ratio = float(gradient_norm) / self.expected(int(self.state["steps"]))
        if math.isfinite(ratio):
            factor = 1 + self.every * self.rate * (ratio - 1)
            self.state["batches"] = min(max(self.state["batches"] * factor, 1.0), float(self.most))

    def expected(self, steps: int) -> float:
        """The norm that is expected at the `steps`-th step, counted from 1."""
        size = self.parameters * math.log(self.parameters)
        return self.scale * math.sqrt(self.parameters) * float((steps * size) ** -self.power)
