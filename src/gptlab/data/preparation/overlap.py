"""Training text that is validated on: files given for both splits, and documents that are in both."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptlab.console import progress
from gptlab.data.dataset import TokenDataset
from gptlab.data.sources.base import Source
from gptlab.data.sources.selection import parts_of
from gptlab.errors import DataError, option
from gptlab.files import sha256_file

_CHUNK = 1 << 22  # tokens held at once


def refuse_equal_files(train: Sequence[Source], validation: Sequence[Source]) -> None:
    """Raise DataError where an input is for both splits, under one name or two. Only files of one size are read."""
    train, validation = parts_of(train), parts_of(validation)
    by_size: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    streams = {source.name for source in train if source.is_stream}
    for source in train:
        if (path := getattr(source, "path", None)) is not None:
            by_size[path.stat().st_size].append((source.name, path))
    digests: dict[Path, str] = {}

    def digest(path: Path) -> str:
        if path not in digests:
            digests[path] = sha256_file(path)
        return digests[path]

    for source in validation:
        path = getattr(source, "path", None)
        same = source.name if source.name in streams else None
        if path is not None:
            found = by_size.get(path.stat().st_size, [])
            same = next((name for name, other in found if other.samefile(path) or digest(other) == digest(path)), None)
        if same is not None:
            what = "is" if same == source.name else f"has the bytes of {same}, which is"
            raise DataError(
                f"{source.name}: {what} training text as well; give other text for {option('validation')}, or "
                f"a share with"
                f" {option('validation_fraction')}"
            )


def shared_documents(train: TokenDataset, validation: TokenDataset) -> dict[str, int]:
    """How many documents of each split are, token for token, a document of the other.

    Two walks over the shards. Memory: a chunk of tokens, and 8 bytes a document of the validation split, whatever the
    size of the training split. Two different documents have one digest with a probability of 2^-64.
    """
    with progress() as bar:
        task = bar.add_task("comparing splits", total=(validation.tokens + train.tokens) * train.dtype.itemsize)
        parts = []
        for digests, sizes, done in _documents(validation, None):
            parts.append((digests, sizes))
            bar.advance(task, done)
        known, counts = np.unique(np.concatenate([digests for digests, _ in parts]), return_counts=True)
        lengths = np.unique(np.concatenate([sizes for _, sizes in parts]))
        found, hits = np.zeros(len(known), dtype=np.bool_), 0
        for digests, _, done in _documents(train, lengths):
            places = np.searchsorted(known, digests)
            inside = places < len(known)
            equal = places[inside][known[places[inside]] == digests[inside]]
            found[equal] = True
            hits += len(equal)
            bar.advance(task, done)
    return {"train": hits, "validation": int(counts[found].sum())}


def _documents(
    data: TokenDataset, lengths: NDArray[np.int64] | None
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64], int]]:
    """Digests and lengths of the documents of a split, chunk by chunk, and the bytes that were read for them.

    `lengths`: only documents of these; a document that crosses chunks comes in any case.
    """
    opened, length = hashlib.blake2b(digest_size=8), -1  # of the document that the chunk before began; -1: none
    for start in range(0, data.tokens, _CHUNK):
        ids = data.read(start, min(_CHUNK, data.tokens - start))
        begins = np.flatnonzero(ids == data.end_of_text)
        digests, sizes = [], []
        first = int(begins[0]) if len(begins) else len(ids)
        opened.update(ids[:first].tobytes())
        length += first if length >= 0 else 0
        if len(begins):
            if length > 0:
                digests.append(opened.digest())
                sizes.append(length)
            inner = np.diff(begins) - 1
            wanted = inner > 0 if lengths is None else (inner > 0) & np.isin(inner, lengths)
            for at, size in zip(begins[:-1][wanted].tolist(), inner[wanted].tolist(), strict=True):
                digests.append(hashlib.blake2b(ids[at + 1 : at + 1 + size].tobytes(), digest_size=8).digest())
                sizes.append(size)
            last = ids[int(begins[-1]) + 1 :]
            opened, length = hashlib.blake2b(last.tobytes(), digest_size=8), len(last)
        if start + _CHUNK >= data.tokens and length > 0:
            digests.append(opened.digest())
            sizes.append(length)
        yield np.frombuffer(b"".join(digests), dtype=np.uint64), np.array(sizes, dtype=np.int64), ids.nbytes
