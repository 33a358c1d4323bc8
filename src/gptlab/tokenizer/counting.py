"""Counting the pre-tokens of a text: the long part of training, in one process or several.

A pre-token that occurs a million times is held once. So memory grows with the distinct ones, and what has been counted
is small enough to be kept on disk (`journal`).
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gptlab.errors import DataError, option
from gptlab.processes import spawned_pool
from gptlab.tokenizer.patterns import cut_long_whitespace

_ALONE_BYTES = 8 << 20  # counted before other processes could have started
_BATCH_BYTES = 2 << 20  # of text that another process counts at once


@dataclass
class TextCounts:
    """What has been counted of a text.

    Attributes:
        counts: how often each pre-token occurs.
        documents, bytes: what was read for it.
        is_whole: whether the text was read to its end.
        is_torn: whether something is being added: a signal may come then, and what is here is not what it says.
    """

    counts: Counter[str] = field(default_factory=Counter)
    documents: int = 0
    bytes: int = 0
    is_whole: bool = False
    is_torn: bool = False


class Batch(NamedTuple):
    """Documents that are counted together, as pieces in which no run of blanks is too long."""

    documents: int
    bytes: int
    pieces: list[str]


def checked_text(text: str, number: int) -> Batch:
    """Document `number` of a training text. Raises DataError where it is no Unicode."""
    try:
        size = len(text) if text.isascii() else len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise DataError(
            f"document {number:,} of the training text is not valid Unicode: half a surrogate pair at character"
            f" {error.start:,}"
        ) from None
    return Batch(1, size, cut_long_whitespace(text))


def count_pretokens(texts: Iterable[str], pattern: str, found: TextCounts, *, workers: int = 1) -> Iterator[None]:
    """Add to `found` what `texts` hold beyond the documents that it counts already; yields after each addition.

    What is found is the same for any number of `workers`. Raises DataError for text that is no Unicode.
    """
    left = itertools.islice(texts, found.documents, None)
    batches = (checked_text(text, number) for number, text in enumerate(left, found.documents))
    for batch, words in _counted(batches, pattern, workers):
        found.is_torn = True
        found.counts.update(words)
        found.documents += batch.documents
        found.bytes += batch.bytes
        found.is_torn = False
        yield
    found.is_whole = True
    yield


def _counted(
    texts: Iterator[Batch], pattern: str, workers: int
) -> Iterator[tuple[Batch, Iterable[str] | Counter[str]]]:
    """Each batch of `texts`, in order, with its pre-tokens: one by one, or counted in another process."""
    read = 0
    for batch in texts:
        yield batch, _pretokens(batch.pieces, pattern)
        read += batch.bytes
        if workers > 1 and read >= _ALONE_BYTES:
            break
    first = next(texts, None) if workers > 1 else None
    if first is None:
        return
    try:
        with spawned_pool(workers, _compiled, pattern) as submit:
            waiting = deque[tuple[Batch, Future[Counter[str]]]]()
            for batch in _joined(itertools.chain([first], texts)):
                waiting.append((batch._replace(pieces=[]), submit(_count, batch.pieces, pattern)))
                if len(waiting) > 2 * workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            for done, future in waiting:
                yield done, future.result()
    except BrokenProcessPool:
        raise DataError(
            f"a counting process died, probably for want of memory; try again with fewer {option('workers')}"
        ) from None


def _joined(texts: Iterable[Batch]) -> Iterator[Batch]:
    """`texts` in batches of about `_BATCH_BYTES`."""
    documents, size, pieces = 0, 0, list[str]()
    for one in texts:
        documents, size = documents + one.documents, size + one.bytes
        pieces.extend(one.pieces)
        if size >= _BATCH_BYTES:
            yield Batch(documents, size, pieces)
            documents, size, pieces = 0, 0, []
    if documents:
        yield Batch(documents, size, pieces)


@functools.cache
def _compiled(pattern: str) -> Any:
    import regex  # type: ignore[import-untyped]

    return regex.compile(pattern)


def _pretokens(pieces: Iterable[str], pattern: str) -> list[str]:
    found: list[str] = []
    for piece in pieces:
        found += _compiled(pattern).findall(piece)
    return found


def _count(pieces: Iterable[str], pattern: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for piece in pieces:
        counts.update(_compiled(pattern).findall(piece))
    return counts
