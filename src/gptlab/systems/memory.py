"""How many sequences fit on the device at once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gptlab.errors import TrainingError
from gptlab.systems.device import memory_limit


def largest_micro_batch(run: Callable[[int], None], rows: int, device: torch.device) -> int:
    """The largest power-of-two share of `rows` whose forward and backward pass (`run(rows)`) fits.

    CUDA: by trying, halving on out-of-memory. Elsewhere, where a process is killed rather than refused: by counting
    the bytes that one sequence keeps for its backward pass. Raises TrainingError where not even one sequence fits.
    """
    if device.type == "cuda":
        return _by_trying(run, rows)
    kept = 0
    seen: set[int] = set()

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        run(1)
    fits = max(1, int(memory_limit(device) / max(kept * 1.5, 1)))  # half again for gradients in flight
    while rows > fits:
        rows = -(-rows // 2)
    return rows


def _by_trying(run: Callable[[int], None], rows: int) -> int:
    while True:
        try:
            run(rows)
            torch.cuda.empty_cache()
            return rows
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
        if rows == 1:
            raise TrainingError(
                "one sequence does not fit in GPU memory; lower train.sequence_length or the size of the model"
            )
        rows = -(-rows // 2)
