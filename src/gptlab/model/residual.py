"""The residual stream: how x goes from block to block."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gptlab.errors import ConfigError
from gptlab.model.component import Context


class Residual(nn.Module):
    """One block after the other; each of three additions, null: none, is a learned number a layer that starts so.

    `stream_scale` multiplies the stream before each block, and `input_scale` is the weight at which the embedded input
    is added there again (both: modded-nanogpt). `skip_scale` is the weight of U-net skips: block i of the first half
    is added before block L − 1 − i of the second (Ronneberger et al. 2015, arXiv:1505.04597; Bao et al. 2023,
    arXiv:2209.12152). The order before a block is skip, scale, input.
    """

    slot = "residual"

    def __init__(
        self,
        layers: int,
        *,
        stream_scale: float | None = None,
        input_scale: float | None = None,
        skip_scale: float | None = None,
    ) -> None:
        super().__init__()
        if skip_scale is not None and layers < 2:
            raise ConfigError(
                "model.residual.skip_scale weighs what goes from the first half of the layers to the second, and there "
                "is one layer; set it to null, or model.layers to 2 or more"
            )
        self.layers, self.half = layers, layers // 2

        def learned(count: int, start: float | None) -> nn.Parameter | None:
            return nn.Parameter(torch.full((count,), start)) if start is not None else None

        self.stream = learned(layers, stream_scale)
        self.input = learned(layers, input_scale)
        self.skip = learned(self.half, skip_scale)

    def forward(self, x_BTD: Tensor, blocks: Iterable[nn.Module], context: Context) -> Tensor:
        """(B, T, D) → (B, T, D)"""
        input_BTD, waiting, dtype = x_BTD, [], x_BTD.dtype
        for index, block in enumerate(blocks):
            if self.skip is not None and index >= self.layers - self.half:
                x_BTD = x_BTD + self.skip[len(waiting) - 1].to(dtype) * waiting.pop()
            if self.stream is not None:
                x_BTD = self.stream[index].to(dtype) * x_BTD
            if self.input is not None:
                x_BTD = x_BTD + self.input[index].to(dtype) * input_BTD
            x_BTD = block(x_BTD, context)
            if self.skip is not None and index < self.half:
                waiting.append(x_BTD)
        return x_BTD
