"""Tensors to a safetensors file without a second copy of them in memory.

The own writers of the format make the whole file in memory first, at the price of the model once or twice more. It is a
header (its length as 8 bytes, then JSON with dtype, shape and place of each tensor) and the bytes of the tensors, so it
can as well be written as it comes: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from gptlab.files import fsync_directory

_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""By dtype, in the format's own order: the last stand first in a file, so that all of them are aligned."""
_PIECE = 2**24  # bytes that are taken to the CPU, or laid out in order, at once


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write `tensors` to `path`, aside first: a crash leaves the old file or the new. A tensor without dimensions stays
    one. Raises OSError where the disk refuses."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    ranks = {dtype: rank for rank, dtype in enumerate(_NAMES)}
    ordered = sorted(tensors.items(), key=lambda item: (-ranks[item[1].dtype], item[0]))
    for name, tensor in ordered:
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [place, place + size],
        }
        place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for _, tensor in ordered:
                _write(tensor.detach(), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def _write(tensor: Tensor, file: IO[bytes]) -> None:
    """The bytes of a tensor in the order of its indices, a piece at a time where it is not so in memory already."""
    if tensor.is_contiguous():
        flat = tensor.reshape(-1)
        step = max(1, _PIECE // tensor.element_size())
        for start in range(0, len(flat), step):
            file.write(memoryview(flat[start : start + step].cpu().view(torch.uint8).numpy()))
    else:
        for row in tensor:
            _write(row.contiguous() if row.ndim <= 1 or row.numel() * row.element_size() <= _PIECE else row, file)
