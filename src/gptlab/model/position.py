"""How a model knows where a token stands.

A position component may do three things, and does nothing where a method is not overridden: `embed` adds to the
embeddings once, `rotary` gives the rotation that attention applies to queries and keys in every layer, and `slopes`
the price that attention charges for distance.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from gptlab.config import require_range
from gptlab.errors import ConfigError
from gptlab.model.component import Rotary, declared, window_width


class NoPosition(nn.Module):
    """No position signal but the causal mask (Kazemnejad et al. 2023, arXiv:2305.19466)."""

    slot = "position"

    def __init__(self) -> None:
        super().__init__()

    def embed(self, x_BTD: Tensor, positions: Tensor) -> Tensor:
        """Embeddings with position added, (B, T, D). `positions`: (T,) or (B, T)."""
        return x_BTD

    def rotary(self, positions: Tensor) -> Rotary | None:
        """The rotation for queries and keys at `positions`, (T,) or (B, T)."""
        return None

    def slopes(self) -> Tensor | None:
        """(H,): a score falls by its head's slope for each position between query and key."""
        return None


class Learned(NoPosition):
    """One learned vector a position, added to the embedding (as GPT-2)."""

    slot = "position"

    def __init__(self, dim: int, context_length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(context_length, dim)

    def embed(self, x_BTD: Tensor, positions: Tensor) -> Tensor:
        """(B, T, D) + (T, D) or (B, T, D)"""
        return x_BTD + self.embedding(positions)


class Sinusoidal(NoPosition):
    """Fixed waves added to the embedding (Vaswani et al. 2017, arXiv:1706.03762, section 3.5), sines before cosines.

    `scale` multiplies them: embeddings that start at a std of 0.02 would drown under waves of amplitude 1.
    """

    slot = "position"
    waves: Tensor

    def __init__(self, dim: int, context_length: int, *, theta: float = 10000.0, scale: float = 0.02) -> None:
        super().__init__()
        require_range("model.position", "above 0", theta=theta, scale=scale)
        half = -(-dim // 2)
        angle = _angles(context_length, theta ** (-torch.arange(half, dtype=torch.float64, device="cpu") / half))
        waves = torch.cat((angle.sin(), angle.cos()), dim=1)[:, :dim] * scale
        self.register_buffer("waves", waves.float(), persistent=False)

    def embed(self, x_BTD: Tensor, positions: Tensor) -> Tensor:
        """(B, T, D) + (T, D) or (B, T, D)"""
        return x_BTD + self.waves[positions]


class ALiBi(NoPosition):
    """Attention with linear biases (Press et al. 2022, arXiv:2108.12409): head h of H has slope 2^(−8h/H), h from 1.

    For H that is no power of two the slopes are those of the power below, then every other one of the power above.
    """

    slot = "position"
    slope: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        power = 2 ** math.floor(math.log2(heads))
        slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
        slopes += [2 ** (-4 * h / power) for h in range(1, 2 * (heads - power), 2)]
        self.register_buffer("slope", torch.tensor(slopes, device="cpu"), persistent=False)

    def slopes(self) -> Tensor:
        """(H,)"""
        return self.slope


class RoPE(NoPosition):
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864, eq. 34): pair i of a head turns by position · θ^(−2i/R).

    The first R = `fraction` · C dimensions of a head turn and the others stand still (Black et al. 2022, GPT-NeoX,
    arXiv:2204.06745, section 2.1). Pairs are (i, i + R/2), the layout of GPT-NeoX and Llama checkpoints, not the
    interleaved one of the paper. The half-truncated rotation of the modded-nanogpt records, frequencies from 1 down
    to exactly 1/1024 over half the pairs, is `fraction: 0.5` with θ = 1024^(n/(n−1)), n = C/4.

    `angles` are computed in float64, or in *float32*, as by Llama's own code and by transformers: less exact by a digit
    at position 1000, but what published models were trained with, and so with their weights equal to the last bit.
    `window_theta` is the θ of layers whose attention has a window (Gemma 3, arXiv:2503.19786, section 2); null: θ too.
    """

    slot = "position"
    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        head_dim: int,
        context_length: int,
        *,
        theta: float = 10000.0,
        fraction: float = 1.0,
        angles: Literal["float64", "float32"] = "float64",
        window_theta: float | None = None,
    ) -> None:
        super().__init__()
        require_range("model.position", "above 0 and at most 1", fraction=fraction)
        self._tabulate(context_length, _frequencies(head_dim, theta, fraction, angles))
        if window_theta is not None:
            self.in_windows = RoPE(head_dim, context_length, theta=window_theta, fraction=fraction, angles=angles)

    def _tabulate(self, context_length: int, frequency: Tensor, magnitude: float = 1.0) -> None:
        angle = _angles(context_length, frequency)
        self.register_buffer("cos", (angle.cos() * magnitude).float(), persistent=False)
        self.register_buffer("sin", (angle.sin() * magnitude).float(), persistent=False)
        self.in_windows: RoPE | None = None

    def rotary(self, positions: Tensor) -> Rotary:
        """cos and sin at `positions`: (T,) → (T, R/2); (B, T) → (B, 1, T, R/2), to broadcast over heads."""
        cos, sin = self.cos[positions], self.sin[positions]
        return (cos, sin) if positions.dim() == 1 else (cos[:, None], sin[:, None])

    def window_rotary(self, positions: Tensor) -> Rotary | None:
        """The same for layers that have a window; None: theirs is that of all."""
        return None if self.in_windows is None else self.in_windows.rotary(positions)


class Llama3RoPE(RoPE):
    """RoPE stretched as in Llama 3.1 (Grattafiori et al. 2024, arXiv:2407.21783; the rule is in Meta's code).

    Waves longer than `original_length` / `low_frequency` are slowed by `factor`, those shorter than
    `original_length` / `high_frequency` are left alone, and between the two the change is linear in frequency.
    """

    slot = "position"

    def __init__(
        self,
        head_dim: int,
        context_length: int,
        *,
        theta: float = 500000.0,
        factor: float = 8.0,
        low_frequency: float = 1.0,
        high_frequency: float = 4.0,
        original_length: int = 8192,
        angles: Literal["float64", "float32"] = "float64",
    ) -> None:
        nn.Module.__init__(self)
        require_range("model.position", "above 0", factor=factor, low_frequency=low_frequency)
        require_range("model.position", "at least 1", original_length=original_length)
        if high_frequency <= low_frequency:
            raise ConfigError(
                f"model.position.high_frequency: {high_frequency:g} is not above low_frequency ({low_frequency:g}), so "
                "there is no ramp between the two; raise it",
                key="model.position.high_frequency",
            )
        frequency = _frequencies(head_dim, theta, 1.0, angles)
        turns = original_length * frequency / (2 * math.pi)  # full turns within the original context
        kept = ((turns - low_frequency) / (high_frequency - low_frequency)).clamp(0, 1)
        self._tabulate(context_length, frequency * (kept + (1 - kept) / factor))


class YaRN(RoPE):
    """RoPE stretched by `factor` (Peng et al. 2023, arXiv:2309.00071, sections 3.2 and 3.4).

    Pairs that make more than `fast` turns in `original_length` are left alone, those with fewer than `slow` are slowed
    by `factor`, with a ramp over the pairs between. `magnitude` multiplies queries and keys; null: 0.1·ln(factor) + 1.
    """

    slot = "position"

    def __init__(
        self,
        head_dim: int,
        context_length: int,
        *,
        theta: float = 10000.0,
        factor: float = 4.0,
        fast: float = 32.0,
        slow: float = 1.0,
        original_length: int = 4096,
        magnitude: float | None = None,
        angles: Literal["float64", "float32"] = "float64",
    ) -> None:
        nn.Module.__init__(self)
        require_range("model.position", "above 1", theta=theta)
        require_range("model.position", "above 0", factor=factor, slow=slow, magnitude=magnitude)
        require_range("model.position", "at least 1", original_length=original_length)
        if fast <= slow:
            raise ConfigError(
                f"model.position.fast: {fast:g} is not above slow ({slow:g}), so there is no ramp between the two; "
                "raise it",
                key="model.position.fast",
            )
        frequency = _frequencies(head_dim, theta, 1.0, angles)

        def pair(turns: float) -> float:
            """The (fractional) pair that makes so many turns within the original context."""
            return head_dim * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

        first, last = max(math.floor(pair(fast)), 0), min(math.ceil(pair(slow)), head_dim - 1)
        index = torch.arange(len(frequency), dtype=frequency.dtype, device="cpu")
        slowed = ((index - first) / max(last - first, 0.001)).clamp(0, 1)
        if magnitude is None:
            magnitude = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
        self._tabulate(context_length, frequency * (1 - slowed + slowed / factor), magnitude)


def _frequencies(head_dim: int, theta: float, fraction: float, angles: str) -> Tensor:
    """θ^(−2i/R) for the pairs of the R dimensions that turn, in radians a position: (R/2,), in the precision named."""
    require_range("model.position", "above 0", theta=theta)
    width = round(head_dim * fraction)
    if width % 2 or not 0 < width <= head_dim:
        raise ConfigError(
            f"model.position: RoPE turns pairs, but {width} of a head's {head_dim} dimensions were to turn; "
            "make that even and no more than the head (model.head_dim, and position.fraction if given)",
            key="model.position",
        )
    dtype = torch.float32 if angles == "float32" else torch.float64
    return 1.0 / theta ** (torch.arange(0, width, 2, dtype=dtype, device="cpu") / width)


def _angles(length: int, frequency: Tensor) -> Tensor:
    """position · frequency, (T, R/2), in the frequency's precision: float32 loses a digit of it at position 1000."""
    return torch.outer(torch.arange(length, dtype=frequency.dtype, device="cpu"), frequency)


def rotate(x_BHTC: Tensor, rotary: Rotary) -> Tensor:
    """Turn each pair (i, i + R/2) of the heads of x by the given angles, R dimensions in all: (B, H, T, C) → same."""
    cos, sin = (part.to(x_BHTC.dtype) for part in rotary)
    width = 2 * cos.shape[-1]
    a, b = x_BHTC[..., :width].chunk(2, dim=-1)
    turned = (a * cos - b * sin, b * cos + a * sin)
    return torch.cat(turned if width == x_BHTC.shape[-1] else (*turned, x_BHTC[..., width:]), dim=-1)


def check_position(position: nn.Module, blocks: nn.ModuleList) -> None:
    """A block that has a distance of its own turns nothing and charges nothing, whatever the position would say.

    Raises ConfigError for a position that would do either, and for one whose angle of windows would turn no layer.
    """
    if getattr(position, "in_windows", None) is not None and not any(map(window_width, blocks.modules())):
        raise ConfigError(
            "model.position.window_theta turns layers that have a window, and none has; set "
            "model.block.attention.window, or leave it out",
            key="model.position.window_theta",
        )
    kind = type(position)
    says = any(getattr(kind, name, None) is not getattr(NoPosition, name) for name in ("rotary", "slopes"))
    if says and any(declared(block, "own_distance") for block in blocks):
        raise ConfigError(
            f"model.position: {type(position).__name__} would do nothing in blocks that have a distance of their own; "
            "set it to NoPosition",
            key="model.position",
        )
