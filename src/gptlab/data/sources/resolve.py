"""From what people name to sources, and from sources to blocks and documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from gptlab.data.sources.base import BLOCK_BYTES, Block, BlockPlace, Cursor, Document, Reading, Source, utf8_length
from gptlab.data.sources.folders import local_files
from gptlab.data.sources.kinds import kind_of_input, open_file
from gptlab.data.sources.selection import Input, Selected, parts_of
from gptlab.data.sources.token_files import IdsBlock
from gptlab.errors import DataError, option


def resolve(
    inputs: Sequence[str | Input], *, cache: Path | None = None, block_bytes: int = BLOCK_BYTES
) -> list[Source]:
    """What `inputs` name, in order: files, folders, globs, URLs, `hf://NAME[:CONFIG][@SPLIT]`, `stdlib:SPLIT`,
    `text:WORDS`, `-` for standard input. Of an `Input` all is one source.

    URLs are downloaded into `cache` first (default: GPTLAB_CACHE, or `~/.cache/gptlab`). A folder gives its Parquet,
    Arrow, JSON-lines and text files (.txt, .md), at any depth, in the order of their paths.

    Raises DataError where something is missing, holds no text files, or cannot be downloaded.
    """
    sources: list[Source] = []
    for given in inputs:
        if isinstance(given, Input):
            parts = resolve([given.source], cache=cache, block_bytes=block_bytes)
            sources.extend(parts if given.is_plain else [Selected(given, tuple(parts))])
        elif (kind := kind_of_input(given)) is not None:
            sources.extend(kind.open_input(given, cache=cache, block_bytes=block_bytes))
        elif "://" in given:
            raise DataError(f"{given}: is no kind of input that gptlab reads; use http, https or hf, or a local path")
        else:
            sources.extend(open_file(path, str(path), block_bytes) for path in local_files(given))
    if not sources:
        raise DataError(
            f"no input; give files, folders, globs, URLs or hf://NAME with {option('input')}, or name a preset"
        )
    return sources


def read_blocks(
    sources: Sequence[Source], reading: Reading, cursor: Cursor | None = None, full: Collection[int] = ()
) -> Iterator[Block]:
    """The blocks of `sources` in order, from `cursor` on.

    `full`: numbers of sources of which no more is wanted; whoever takes the blocks may add to them.
    """
    first, position = cursor or (0, None)
    for number, source in enumerate(sources[first:], first):
        for block in source.blocks(number, reading, position if number == first else None):
            if number in full:
                break
            yield block


def read_documents(sources: Sequence[Source], reading: Reading) -> Iterator[tuple[Block, Iterator[Document]]]:
    """Each block of `sources` with its documents, the first of a file as one that begins, whatever its rows say."""
    last: list[object] = []
    for block in read_blocks(sources, reading):

        def documents(block: Block = block) -> Iterator[Document]:
            nonlocal last
            for document in block.documents(reading):
                of = source_of(block)
                yield document if of == last else dataclasses.replace(document, continues=False)
                last = of

        yield block, documents()


def source_of(block: BlockPlace) -> list[object]:
    """What tells the files apart that blocks are of: one may be given twice, an archive has several. Files of packed
    ids are one run of them: a document may go on in the next."""
    return ["shards"] if isinstance(block, IdsBlock) else [block.cursor[0], block.source]


def total_size(sources: Sequence[Source], reading: Reading) -> int | None:
    """Bytes of text in all of `sources`, about; None where one cannot tell."""
    total = 0
    for source in sources:
        size = source.size(reading)
        if size is None:
            return None
        total += size
    return total


def iter_documents(
    inputs: Sequence[str | Input],
    *,
    text_column: str = "text",
    limit_bytes: int | None = None,
    cache: Path | None = None,
    separator: str | None = None,
    document_start: str | None = None,
    errors: Literal["strict", "replace"] = "strict",
    reading: Reading | None = None,
) -> Iterator[Document]:
    """The documents of `inputs` (see `resolve` and `Reading`), one after the other, at bounded memory.

    Args:
        limit_bytes: stop after the document or piece that reaches this many UTF-8 bytes; pieces are at most
            about this long then.
        reading: how text is read, in place of `text_column`, `separator`, `document_start` and `errors`.

    Raises DataError for inputs that are missing or no text, and where there is no text at all.
    """
    reading = reading or Reading(text_column, separator, document_start, errors)
    sources = resolve(inputs, cache=cache, block_bytes=block_bytes_for(limit_bytes))
    for each in inputs:
        if isinstance(each, Input) and each.max_tokens is not None:
            raise DataError(f"{each.source}: tokens are counted where text is tokenized; cap its bytes or documents")
    seen = 0
    for _, documents in read_documents(sources, reading):
        for document in documents:
            if document.ids is not None:
                raise DataError(f"{document.source}: holds token ids, no text; give text in its place")
            yield document
            seen += utf8_length(document.text)
            if limit_bytes is not None and seen >= limit_bytes:
                return
    if not seen:
        raise DataError(f"{', '.join(names_of(sources))}: no text in it")


def block_bytes_for(limit_bytes: int | None) -> int:
    """Size of blocks where only `limit_bytes` of text are wanted."""
    return BLOCK_BYTES if limit_bytes is None else max(1 << 10, min(BLOCK_BYTES, limit_bytes))


def names_of(sources: Iterable[Source], limit: int = 100) -> list[str]:
    """Names for `dataset.json`: all, or the first `limit` and how many more."""
    names = [source.name for source in parts_of(sources)]
    return names if len(names) <= limit else [*names[:limit], f"… and {len(names) - limit} more"]
