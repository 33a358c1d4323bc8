"""Text in, batches out: sources of text, token shards on disk, and batches addressed by (seed, step)."""

from __future__ import annotations

from gptlab.data.batches import IGNORE, Batch, BatchStream, TokenStream, micro_batches, validation_batches
from gptlab.data.dataset import MANIFEST, Info, Manifest, TokenDataset, info, verify
from gptlab.data.preparation import prepare
from gptlab.data.sources import Document, Input, Reading, iter_documents
from gptlab.data.splits import measured_on, open_splits, open_stream

__all__ = [
    "IGNORE",
    "MANIFEST",
    "Batch",
    "BatchStream",
    "Document",
    "Info",
    "Input",
    "Manifest",
    "Reading",
    "TokenDataset",
    "TokenStream",
    "info",
    "iter_documents",
    "measured_on",
    "micro_batches",
    "open_splits",
    "open_stream",
    "prepare",
    "validation_batches",
    "verify",
]
