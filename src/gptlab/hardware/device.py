"""What the run is computed on: the device, its peak speed, its memory."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Any

import torch

from gptlab.errors import ConfigError
from gptlab.hardware.gpus import gpu_of_driver, read_gpus


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `name` means: auto takes the GPU of this rank, else Apple's, else the CPU.

    Raises ConfigError where the named device does not exist here.
    """
    if name == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"system.device: {name!r} is no device; use auto, cpu, cuda, cuda:0 or mps", key="system.device"
        ) from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                f"system.device: {name!r}, but torch sees no CUDA device here; use auto or cpu", key="system.device"
            )
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise ConfigError(
                f"system.device: {name!r}, but only {torch.cuda.device_count()} CUDA devices are here",
                key="system.device",
            )
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            "system.device: 'mps', but this is not an Apple GPU (or torch was built without it)", key="system.device"
        )
    if device.type in ("cpu", "mps") and device.index:
        raise ConfigError(f"system.device: {name!r}, but there is one {device.type} only", key="system.device")
    if device.type not in ("cpu", "mps"):
        raise ConfigError(f"system.device: {name!r} is not supported; use auto, cpu, cuda or mps", key="system.device")
    return device


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOP/s of one device by its data sheet; None where it is not known (every CPU)."""
    if device.type != "cuda":
        return None
    card = gpu_of_driver(torch.cuda.get_device_name(device), read_gpus())
    return None if card is None else card.peak


def describe(device: torch.device) -> dict[str, Any]:
    """Hardware and versions, for env.json."""
    described: dict[str, Any] = {
        "device": str(device),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described["gpu"] = properties.name
        described["gpu_memory_bytes"] = properties.total_memory
        described["cuda"] = torch.version.cuda
    return described


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def available_memory(device: torch.device) -> int:
    """Bytes that a process may take: what is free on the GPU, or the machine's available memory, where this process is
    confined to less (a container, a job of a cluster) that."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() * 0.8)
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("MemAvailable"):
                return min([int(line.split()[1]) * 1024, *_confined_to()])
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 8 * 2**30


def _confined_to(root: Path = Path("/")) -> list[int]:
    """Bytes that each control group around this process leaves it, version 2 and 1: none where none has a limit."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            innermost = root / "sys/fs/cgroup" / controllers / group.strip("/")
            for folder in (innermost, *innermost.parents):
                if folder == root / "sys/fs":
                    break
                found += _left(folder, *(_CGROUP_1 if controllers else _CGROUP_2))
    return found


_CGROUP_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
_CGROUP_2 = ("memory.max", "memory.current", "file")


def _left(folder: Path, limit: str, used: str, cached: str) -> list[int]:
    with contextlib.suppress(OSError, ValueError):  # ValueError: "max", no limit
        most, now = (int((folder / name).read_text()) for name in (limit, used))
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return [max(0, most - now + int(counts.get(cached, 0)))]  # a file's pages are given back when they are needed
    return []


def memory_limit(device: torch.device) -> int:
    """Bytes that a training step may take: all that is free on a GPU, half of the machine's available memory."""
    free = available_memory(device)
    return free // 2 if device.type == "cpu" else free
