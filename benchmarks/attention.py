"""Attention on this CPU: torch's fused kernel against the explicit products that gptlab takes in bfloat16.

    python benchmarks/attention.py [--turns 5] [--threads 2]

Forward and backward, taking turns; median (range) of milliseconds, and the ratio turn by turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from turns import ratio, spread

from gptlab.hardware.allocator import keep_freed_memory
from gptlab.model.backends import PLAIN, View, explicit_attention

SHAPES = [(16, 4, 128, 32), (32, 4, 256, 36), (16, 6, 256, 64), (8, 6, 512, 64), (4, 12, 1024, 64)]  # B, H, T, C


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """scaled_dot_product_attention as torch chooses it."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def explicit(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Scores in memory."""
    return explicit_attention(q, k, v, View(q.shape[-2], q.device), PLAIN, 0.0)


def milliseconds(attention: Callable[..., torch.Tensor], qkv: list[torch.Tensor], upstream: torch.Tensor) -> float:
    """One forward and backward pass."""
    began = time.perf_counter()
    attention(*qkv).backward(upstream)
    return (time.perf_counter() - began) * 1000


def main() -> None:
    """Parse, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    print("| B, H, T, C | dtype | fused ms | explicit ms | fused / explicit |\n|---|---|---|---|---|")
    for B, H, T, C in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            qkv = [torch.randn(B, T, H, C, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
            upstream = torch.randn(B, H, T, C, dtype=dtype)
            times: dict[str, list[float]] = {"fused": [], "explicit": []}
            for turn in range(options.turns + 1):
                for attention in (fused, explicit):
                    taken = milliseconds(attention, qkv, upstream)
                    if turn:  # the first warms up
                        times[attention.__name__].append(taken)
            compared = ratio(times["fused"], times["explicit"])
            name = str(dtype).removeprefix("torch.")
            print(
                f"| {B}, {H}, {T}, {C} | {name} | {spread(times['fused'])} | {spread(times['explicit'])} | {compared} |"
            )


if __name__ == "__main__":
    main()
