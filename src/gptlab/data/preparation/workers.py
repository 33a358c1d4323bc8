"""From a block of text to token ids, in worker processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptlab.data.preparation.ids import ids_of
from gptlab.data.shards import token_dtype
from gptlab.data.sources.base import Block, Reading, utf8_length
from gptlab.errors import DataError, option
from gptlab.processes import spawned_pool

if TYPE_CHECKING:
    from gptlab.tokenizer import Tokenizer


@dataclass(frozen=True)
class EncodedBlock:
    """The token ids of a block, document by document.

    Attributes:
        ids: (tokens,), the end-of-text id before each document among them.
        lengths: (documents,), ids of each document or part of a long one, its end-of-text id included.
        bytes: (documents,), UTF-8 bytes of each.
        begins: (documents,), whether it begins a document, and does not go on with the one before.
    """

    ids: NDArray[Any]
    lengths: NDArray[np.int64]
    bytes: NDArray[np.int64]
    begins: NDArray[np.bool_]

    def opened(self, end_of_text: int) -> EncodedBlock:
        """The same, where its first document begins one: what it would go on with is of another file."""
        if not len(self.begins) or self.begins[0]:
            return self
        ids = np.concatenate([np.array([end_of_text], dtype=self.ids.dtype), self.ids])
        lengths, begins = self.lengths.copy(), self.begins.copy()
        lengths[0], begins[0] = lengths[0] + 1, True
        return EncodedBlock(ids, lengths, self.bytes, begins)

    def first(self, count: int) -> EncodedBlock:
        """The first `count` documents of it."""
        ids = self.ids[: int(self.lengths[:count].sum())]
        return EncodedBlock(ids, self.lengths[:count], self.bytes[:count], self.begins[:count])


def encode(block: Block, tokenizer: Tokenizer, reading: Reading) -> EncodedBlock:
    """The ids of a block's documents, each with its separator before it. Raises DataError where it is no text."""
    documents = list(block.documents(reading))
    dtype = token_dtype(tokenizer.vocab_size)
    # The end of the document before and the start of this one: whether a document ends here is known where another
    # begins. A split so begins with an end of nothing, and its last document has none.
    ends = [] if tokenizer.document_end is None else [tokenizer.document_end]
    separator = np.array([*ends, tokenizer.end_of_text], dtype=dtype)
    if reading.ids is not None or any(document.ids is not None for document in documents):
        texts, begins, sizes = ids_of(documents, tokenizer)
    else:
        texts = _encode_texts([document.text for document in documents], block.source, tokenizer, reading)
        begins = np.array([not document.continues for document in documents], dtype=np.bool_)
        sizes = [utf8_length(document.text) for document in documents]
    parts = [part for ids, first in zip(texts, begins, strict=True) for part in ((separator, ids) if first else (ids,))]
    return EncodedBlock(
        ids=np.concatenate(parts, dtype=dtype) if parts else np.empty(0, dtype=dtype),
        lengths=np.array([len(ids) for ids in texts], dtype=np.int64) + begins * len(separator),
        bytes=np.array(sizes, dtype=np.int64),
        begins=begins,
    )


def _encode_texts(texts: list[str], source: str, tokenizer: Tokenizer, reading: Reading) -> list[NDArray[Any]]:
    if not reading.special_tokens:
        return tokenizer.encode_documents(texts)
    try:
        encoded = tokenizer.encode_documents(texts, allow_special=reading.special_tokens)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    if any((ids == tokenizer.end_of_text).any() for ids in encoded):  # documents are counted by it
        token = tokenizer.end_of_text_token
        raise DataError(
            f"{source}: {token} stands inside of a document; it is what separates them: cut them there with "
            f"{option('separator', token)}"
        )
    return encoded


@contextlib.contextmanager
def encoding_workers(
    workers: int, tokenizer: Path, reading: Reading
) -> Iterator[Callable[[Block], Future[EncodedBlock]]]:
    """Yield a function that encodes a block: in a pool of processes, or in this one where one is enough."""
    if workers == 1:
        from gptlab.tokenizer import load_tokenizer

        loaded = load_tokenizer(tokenizer)

        def here(block: Block) -> Future[EncodedBlock]:
            future: Future[EncodedBlock] = Future()
            future.set_result(encode(block, loaded, reading))
            return future

        yield here
        return
    with spawned_pool(workers, _start_worker, tokenizer, reading) as submit:
        yield lambda block: submit(_encode_in_worker, block)


_worker: tuple[Tokenizer, Reading] | None = None


def _start_worker(tokenizer: Path, reading: Reading) -> None:
    """In a new worker process: load the tokenizer."""
    global _worker
    from gptlab.tokenizer import load_tokenizer

    _worker = (load_tokenizer(tokenizer), reading)


def _encode_in_worker(block: Block) -> EncodedBlock:
    assert _worker is not None
    return encode(block, *_worker)
