"""Bytes, durations and prices for people."""

from __future__ import annotations


def format_bytes(count: float) -> str:
    """1.5 GiB, 640 MiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if abs(count) >= size:
            return f"{count / size:.3g} {unit}" if count / size < 1000 else f"{count / size:,.0f} {unit}"
    return f"{count / 1024:.3g} KiB"


def format_seconds(seconds: float) -> str:
    """45 s, 12 min, 3.4 h, 2.1 days."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.3g} h" if seconds < 48 * 3600 else f"{seconds / 86400:.3g} days"


def format_dollars(dollars: float) -> str:
    """$0.0123, $1.20, $340."""
    return f"${dollars:,.0f}" if dollars >= 100 else f"${dollars:.2f}" if dollars >= 0.1 else f"${dollars:.2g}"
