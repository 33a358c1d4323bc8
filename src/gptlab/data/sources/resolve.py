"""From what people name to sources, and from sources to blocks and documents."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from gptlab.data.sources.base import BLOCK_BYTES, Block, Cursor, Document, Reading, Source, utf8_length
from gptlab.data.sources.kinds import kind_of_file, kind_of_input, open_file
from gptlab.errors import DataError


def resolve(inputs: Sequence[str], *, cache: Path | None = None, block_bytes: int = BLOCK_BYTES) -> list[Source]:
    """What `inputs` name, in order: files, folders, globs, URLs, `hf://NAME[:CONFIG][@SPLIT]`,
    `stdlib:SPLIT`.

    URLs are downloaded into `cache` first (default: GPTLAB_CACHE, or `~/.cache/gptlab`). A folder gives its Parquet,
    JSON-lines and text files (.txt, .md), at any depth, in the order of their paths.

    Raises DataError where something is missing, holds no text files, or cannot be downloaded.
    """
    sources: list[Source] = []
    for given in inputs:
        if (kind := kind_of_input(given)) is not None:
            sources.extend(kind.open_input(given, cache=cache, block_bytes=block_bytes))
        elif "://" in given:
            raise DataError(f"{given}: is no kind of input that gptlab reads; use http, https or hf, or a local path")
        else:
            sources.extend(open_file(path, str(path), block_bytes) for path in _local_files(given))
    if not sources:
        raise DataError("no input; give files, folders, globs, URLs or hf://NAME with --input, or name a preset")
    return sources


def read_blocks(sources: Sequence[Source], reading: Reading, cursor: Cursor | None = None) -> Iterator[Block]:
    """The blocks of `sources` in order, from `cursor` on."""
    first, position = cursor or (0, None)
    for number, source in enumerate(sources[first:], first):
        yield from source.blocks(number, reading, position if number == first else None)


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
    inputs: Sequence[str],
    *,
    text_column: str = "text",
    limit_bytes: int | None = None,
    cache: Path | None = None,
    separator: str | None = None,
    document_start: str | None = None,
    errors: Literal["strict", "replace"] = "strict",
) -> Iterator[Document]:
    """The documents of `inputs` (see `resolve` and `Reading`), one after the other, at bounded memory.

    Args:
        limit_bytes: stop after the document or piece that reaches this many UTF-8 bytes; pieces are at most
            about this long then.

    Raises DataError for inputs that are missing or no text, and where there is no text at all.
    """
    reading = Reading(text_column, separator, document_start, errors)
    sources = resolve(inputs, cache=cache, block_bytes=block_bytes_for(limit_bytes))
    seen = 0
    for block in read_blocks(sources, reading):
        for document in block.documents(reading):
            yield document
            seen += utf8_length(document.text)
            if limit_bytes is not None and seen >= limit_bytes:
                return
    if not seen:
        raise DataError(f"{', '.join(inputs)}: no text in it")


def block_bytes_for(limit_bytes: int | None) -> int:
    """Size of blocks where only `limit_bytes` of text are wanted."""
    return BLOCK_BYTES if limit_bytes is None else max(1 << 10, min(BLOCK_BYTES, limit_bytes))


def names_of(sources: Iterable[Source], limit: int = 100) -> list[str]:
    """Names for `dataset.json`: all, or the first `limit` and how many more."""
    names = [source.name for source in sources]
    return names if len(names) <= limit else [*names[:limit], f"… and {len(names) - limit} more"]


def _local_files(given: str) -> list[Path]:
    path = Path(given).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and kind_of_file(file) is not None)
        if not files:
            raise DataError(
                f"{given}: no .parquet, .jsonl, .txt or .md file in this folder; name the files with a glob"
            )
        return files
    if path.is_file():
        return [path]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not found:
        what = "no file matches" if glob.has_magic(given) else "no such file or folder"
        raise DataError(f"{given}: {what}; check the path of the input")
    return found
