"""Ids that others made of text: cut into documents, and held against the tokenizer that is said to have made them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptlab.console import say
from gptlab.data.shards import token_dtype
from gptlab.data.sources.base import Document, Reading, Source
from gptlab.data.sources.hub import HubFile
from gptlab.data.sources.resolve import read_blocks
from gptlab.data.sources.selection import Selected, parts_of
from gptlab.data.sources.token_files import IdsFile
from gptlab.errors import DataError, option

if TYPE_CHECKING:
    from gptlab.tokenizer import Tokenizer

_SAMPLE = 64  # documents that are decoded and encoded again
_SAMPLE_BLOCKS = 4
_LONGEST = 1 << 14  # ids of a document of the sample: the end of a longer one is left out
_EDGE = 32  # ids at a cut, where it may have made other tokens than the text had
_LEAST = 0.9  # of the sample that has to give the same ids


def ids_of(
    documents: Sequence[Document], tokenizer: Tokenizer
) -> tuple[list[NDArray[Any]], NDArray[np.bool_], list[int]]:
    """The ids of documents without separators, whether each begins one, and the bytes of text that they stand for.

    Raises DataError for an id that the tokenizer does not have, and a separator inside of a document.
    """
    lengths = np.array([len(token) for token in tokenizer.token_bytes()], dtype=np.int64)
    pieces = [piece for document in documents for piece in _pieces(document, tokenizer)]
    texts = [ids.astype(token_dtype(tokenizer.vocab_size)) for ids, _ in pieces]
    return texts, np.array([begins for _, begins in pieces], dtype=np.bool_), [int(lengths[ids].sum()) for ids in texts]


def _pieces(document: Document, tokenizer: Tokenizer) -> Iterator[tuple[NDArray[Any], bool]]:
    """The documents in `document.ids`, each with whether it begins there."""
    ids = document.ids
    if ids is None:
        raise DataError(f"{document.source}: is text without a column of ids; leave it out, or prepare it by itself")
    smallest, largest = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
    if smallest < 0 or largest >= tokenizer.vocab_size:
        wrong = smallest if smallest < 0 else largest
        raise DataError(
            f"{document.source}: holds id {wrong}, and the ids of tokenizer {tokenizer.name!r} are "
            f"0..{tokenizer.vocab_size - 1}; name the one that made them with {option('tokenizer')}"
        )
    marks = np.flatnonzero(ids == tokenizer.end_of_text)
    if not document.continues:  # a row is a document: a separator stands at its beginning, at its end, or not at all
        first = 1 if len(marks) and marks[0] == 0 else 0
        last = len(ids) - 1 if len(marks) and marks[-1] == len(ids) - 1 else len(ids)
        if np.any((marks >= first) & (marks < last)):
            raise DataError(
                f"{document.source}: a row holds the separator {tokenizer.end_of_text_token} ({tokenizer.end_of_text}) "
                f"inside; where rows are parts of one packed run, say {option('ids_rows', 'packed', argument='ids')}"
            )
        if first < last:
            yield _without_end(ids[first:last], tokenizer), True
        return
    edges = [*marks.tolist(), len(ids)]
    if edges[0]:
        yield _without_end(ids[: edges[0]], tokenizer), False
    for start, stop in itertools.pairwise(edges):
        yield _without_end(ids[start + 1 : stop], tokenizer), True


def _without_end(ids: NDArray[Any], tokenizer: Tokenizer) -> NDArray[Any]:
    """`ids` without the token that ends a document, which is written before the next one's separator."""
    ended = tokenizer.document_end is not None and len(ids) and ids[-1] == tokenizer.document_end
    return ids[:-1] if ended else ids


def check_ids(
    splits: Iterable[Sequence[Source]],
    reading: Reading,
    tokenizer: Tokenizer,
    limit_bytes: int | None,
    validation_fraction: float | None,
) -> None:
    """Hold a sample of what is ids in the sources of each split against `tokenizer`, and say what came of it.

    Raises DataError where the text that ids stand for gives other ids, and for options that look at text.
    """
    for sources in splits:
        files = [source for source in sources if any(map(_holds_ids, parts_of([source])))]
        held = files if reading.ids is None else sources
        if not held:
            continue
        packed = bool(files) or reading.ids == "packed"
        _refuse_what_wants_text(held, packed, limit_bytes, validation_fraction)
        for source in (held[0], *(last for last in held[1:][-1:] if not last.is_stream)):
            _check_sample(source, reading, tokenizer)


def _holds_ids(source: Source) -> bool:
    """Whether it is a file of token ids, here or on the hub."""
    return isinstance(source, IdsFile) or (isinstance(source, HubFile) and source.holds_ids)


def _refuse_what_wants_text(
    sources: Sequence[Source], packed: bool, limit_bytes: int | None, validation_fraction: float | None
) -> None:
    for source in sources:
        chosen = source.input if isinstance(source, Selected) else None
        if chosen is not None and (chosen.judges or chosen.max_bytes or (packed and chosen.max_documents)):
            raise DataError(f"{source.name}: filters and caps look at text, and it holds ids; cap tokens, or none")
    if limit_bytes is not None:
        raise DataError(
            f"{option('limit_bytes')}: counts text, and {sources[0].name} holds ids; use {option('num_shards')}"
        )
    if validation_fraction is not None and packed:
        raise DataError(
            f"{option('validation_fraction')}: the documents of packed ids are not counted beforehand; use "
            f"{option('validation_tokens')}"
        )


def _check_sample(source: Source, reading: Reading, tokenizer: Tokenizer) -> None:
    same = looked = 0
    for ids, whole in itertools.islice(_sample(source, reading, tokenizer), _SAMPLE):
        same += _gives_the_same(ids, tokenizer, 0 if whole else _EDGE)
        looked += 1
    if not looked:
        say(f"{source.name}: no document in its first blocks to hold against tokenizer {tokenizer.name!r}")
        return
    found = f"{same} of {looked} sampled documents ({same / looked:.0%})"
    if same < _LEAST * looked:
        raise DataError(
            f"{source.name}: only {found} are the ids that tokenizer {tokenizer.name!r} gives their text; name the one "
            f"that made them with {option('tokenizer')}"
        )
    say(f"{source.name}: {found} are the ids that tokenizer {tokenizer.name!r} gives their text")


def _sample(source: Source, reading: Reading, tokenizer: Tokenizer) -> Iterator[tuple[NDArray[Any], bool]]:
    """Ids of documents at the beginning of `source`, and whether each is a whole one."""
    for block in itertools.islice(read_blocks([source], reading), _SAMPLE_BLOCKS):
        for document in block.documents(reading):
            pieces = list(_pieces(document, tokenizer))
            for number, (ids, begins) in enumerate(pieces):
                whole = begins and len(ids) <= _LONGEST and not (document.continues and number == len(pieces) - 1)
                if whole or len(ids) > 4 * _EDGE:
                    yield ids[:_LONGEST], whole


def _gives_the_same(ids: NDArray[Any], tokenizer: Tokenizer, edge: int) -> bool:
    """Whether the text of `ids` is cut into tokens where `ids` cut it, `edge` ids at either end left out."""
    content = tokenizer.decode_bytes(ids)
    opened = 0  # bytes of half a character at the beginning
    while edge and opened < min(3, len(content)) and content[opened] & 0xC0 == 0x80:
        opened += 1
    again = tokenizer.encode(content[opened:].decode("utf-8", errors="ignore"))
    if not edge:
        return bool(np.array_equal(np.asarray(again), ids))
    sizes = np.array([len(token) for token in tokenizer.token_bytes()], dtype=np.int64)
    ends = np.cumsum(sizes[ids.astype(np.int64)])[edge:-edge]
    return bool(np.isin(ends, opened + np.cumsum(sizes[np.asarray(again, dtype=np.int64)])).all())
