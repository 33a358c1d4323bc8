"""A step of Muon on this machine: torch's own, matrix by matrix in bfloat16, against gptlab's.

    python benchmarks/muon.py [CONFIG ...] [--turns 7] [--threads 2] [--vocab 2048]

gptlab's is measured in both precisions of Newton–Schulz; it takes bfloat16 by itself only where the hardware multiplies
that. Random gradients, the matrices inside blocks alone; taking turns; median (range) of milliseconds, ratio in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from turns import ratio, spread

from gptlab import optim
from gptlab.config import load_config
from gptlab.hardware.precision import has_fast_bfloat16
from gptlab.model import build_model


def contenders(matrices: list[tuple[str, Tensor]]) -> dict[str, Callable[[], object]]:
    """A step of each, on the same parameters."""
    own = optim.Muon(matrices, lr=0.02, unstack=False)
    torchs = torch.optim.Muon([matrix for _, matrix in matrices], lr=0.02, weight_decay=0.0)

    def in_precision(fast: bool) -> Callable[[], object]:
        def step() -> None:
            optim.has_fast_bfloat16 = lambda _: fast
            own.step()

        return step

    return {"torch": torchs.step, "bfloat16": in_precision(True), "float32": in_precision(False)}


def milliseconds(step: Callable[[], object]) -> float:
    """One step."""
    began = time.perf_counter()
    step()
    return (time.perf_counter() - began) * 1000


def main() -> None:
    """Parse, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=["books-mini", "books-xs"])
    for name, default in (("turns", 7), ("threads", 2), ("vocab", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    native = has_fast_bfloat16(torch.device("cpu"))
    print(f"bfloat16 in hardware: {native}; gptlab takes {'bfloat16' if native else 'float32'} here\n")
    print("| config | torch's ms | gptlab bfloat16 ms | torch / this | gptlab float32 ms | torch / this |")
    print("|---|---|---|---|---|---|")
    for path in options.configs:
        model = build_model(load_config(path), options.vocab)
        matrices = [(n, p) for n, p in model.named_parameters() if optim.parameter_kind(n, p) == "matrix"]
        for _, matrix in matrices:
            matrix.grad = torch.randn_like(matrix)
        steps = contenders(matrices)
        times: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(options.turns + 1):
            for name, step in steps.items():
                taken = milliseconds(step)
                if turn:  # the first warms up
                    times[name].append(taken)
        cells = [path.stem, spread(times["torch"])]
        for name in ("bfloat16", "float32"):
            cells += [spread(times[name]), ratio(times["torch"], times[name])]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
