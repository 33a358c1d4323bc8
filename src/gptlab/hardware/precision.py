"""In which precision matrices are multiplied: what the hardware is fast in, and what that means for a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from gptlab.errors import ConfigError


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices natively."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, check, bool)() for check in checks)
    return False


def has_float8(device: torch.device) -> bool:
    """Whether the hardware multiplies float8 matrices natively: NVIDIA GPUs from Ada and Hopper on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of matrix products. auto: bfloat16 where the hardware has it, float16 on older CUDA, else float32.

    Raises ConfigError for float16 off CUDA, where nothing is gained and much is lost.
    """
    if name == "auto":
        if has_fast_bfloat16(device):
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else torch.float32
    if name == "float16" and device.type != "cuda":
        raise ConfigError(
            f"train.dtype: float16 needs a CUDA device, this is {device.type}; use auto or float32", key="train.dtype"
        )
    dtype: torch.dtype = getattr(torch, name)
    return dtype


@contextlib.contextmanager
def autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Matrix products in `dtype`, master weights and reductions in float32."""
    if dtype == torch.float32:
        yield
    else:
        with torch.autocast(device.type, dtype=dtype):
            yield
