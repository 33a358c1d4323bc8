"""Text in, batches out: sources of text, token shards on disk, and batches addressed by (seed, step)."""

from __future__ import annotations

from gptlab.data.batches import IGNORE, Batch, BatchStream, micro_batches, validation_batches
from gptlab.data.dataset import Info, Manifest, TokenDataset, info, verify

__all__ = [
    "IGNORE",
    "Batch",
    "BatchStream",
    "Info",
    "Manifest",
    "TokenDataset",
    "info",
    "micro_batches",
    "validation_batches",
    "verify",
]
