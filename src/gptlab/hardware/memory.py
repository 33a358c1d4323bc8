"""How many sequences fit on the device at once."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

import torch

from gptlab.errors import TrainingError
from gptlab.hardware.device import memory_limit


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


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this process has had allocated on a GPU, elsewhere the most that was resident of it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="utf-8") as file:
        for line in file:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    try:  # where there is no /proc; on Linux this would begin at the peak of the process that started this one
        import resource
    except ImportError:  # Windows keeps no such count
        return 0
    kept = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kept if sys.platform == "darwin" else kept * 1024


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
