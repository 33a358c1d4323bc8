"""Memory of the CPU, kept rather than given back.

A training step allocates and frees the same large tensors again and again. glibc asks the kernel for each with
mmap and returns it at once, so every step pays for fresh, zeroed pages; on two cores that costs a third of the
time of a small model (docs/decisions/0007). Here the process keeps what it once had.
"""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc to serve every allocation from its heap and never to shrink it. False where there is no glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
