"""Products of a matrix with a few vectors on this CPU, as models read them: torch's linear layer, the same with the
matrix by columns, and packed for oneDNN.

    python benchmarks/packing.py [--threads 2] [--turns 15] [--dtype float32]

Each cell: milliseconds of torch's layer, then how many times as fast the others are, medians of turns taken in
alternation. Matrices of a shape are many enough not to stay in the caches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from gptlab.inference.packing import PackedLinear

SHAPES = {"head": (49152, 576), "square": (384, 384), "up": (1536, 384), "down": (384, 1536)}
ROWS = (1, 2, 4, 16, 64, 256, 1024)
BEYOND_CACHES = 6e7  # bytes


def median_times(contenders: list[Callable[[], object]], turns: int) -> list[float]:
    """Seconds of each."""
    times: list[list[float]] = [[] for _ in contenders]
    for turn in range(turns + 2):
        for own, contender in zip(times, contenders, strict=True):
            began = time.perf_counter()
            contender()
            if turn > 1:
                own.append(time.perf_counter() - began)
    return [statistics.median(own) for own in times]


def compare(shape: tuple[int, int], rows: int, dtype: torch.dtype, turns: int) -> str:
    """One cell of the table."""
    rounds = max(1, int(BEYOND_CACHES / (4 * shape[0] * shape[1])))
    layers = [nn.Linear(shape[1], shape[0], bias=False).to(dtype) for _ in range(rounds)]
    columns = [layer.weight.detach().t().contiguous().t() for layer in layers]
    packed = [PackedLinear(layer, dtype) for layer in layers]
    x = torch.randn(rows, shape[1], dtype=dtype)
    plain, by_columns, by_blocks = median_times(
        [
            lambda: [layer(x) for layer in layers],
            lambda: [F.linear(x, weight) for weight in columns],
            lambda: [layer(x) for layer in packed],
        ],
        turns,
    )
    return f"{1e3 * plain / rounds:.3f}: {plain / by_columns:.2f}, {plain / by_blocks:.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"| vectors | {' | '.join(f'{name} {n} × {k}' for name, (n, k) in SHAPES.items())} |")
    print("|---" * (1 + len(SHAPES)) + "|")
    with torch.inference_mode():
        for rows in ROWS:
            cells = [compare(shape, rows, getattr(torch, options.dtype), options.turns) for shape in SHAPES.values()]
            print(f"| {rows} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
