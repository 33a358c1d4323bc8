"""What every source of text is made of: documents, blocks, and how text is read.

Reading happens in two halves, so that the expensive one can be shared between processes. A source hands out *blocks* in
order: about a megabyte of raw text, or the address of some Parquet rows, with a cursor from which reading can start
again. `Block.documents` turns a block into documents and runs anywhere. What a block holds depends on the inputs alone,
never on who reads it.

A text longer than a block comes in parts (`Document.continues`), cut where tokenizers cut anyway: between an
alphanumeric character and a space that a letter follows.

What was tokenized already comes as ids in place of text (`Document.ids`). Where documents begin in packed ids, only the
tokenizer can say: they are cut where text is tokenized.
"""

from __future__ import annotations

import contextlib
import functools
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gptlab.errors import DataError, option

BLOCK_BYTES = 1 << 20

_MOST_REPLACED = 0.25  # of the characters of a text: where more would be, it is no UTF-8 at all
_JUDGED = 1 << 10  # characters that this can be said of

Cursor = tuple[int, Any]
"""Where a block begins: number of the source, and a position that JSON can hold."""


@dataclass(frozen=True)
class Document:
    """One document, or where it is long a piece of one.

    Attributes:
        text: never empty, but where it is ids.
        source: the file, URL or data set that it comes from.
        continues: whether it goes on with the document before rather than beginning a new one.
        ids: (tokens,) of a document that was tokenized already. One that `continues` is a run of packed ids, in which
            documents begin with the separator.
    """

    text: str
    source: str
    continues: bool = False
    ids: NDArray[Any] | None = None


@dataclass(frozen=True)
class Reading:
    """How text is read from a source.

    Attributes:
        text_column: the column or field that holds the text; `doc.text` is field `text` of field `doc`.
        separator: what stands between the documents of a text file (line ends around it are dropped); None
            takes each file as one document, byte for byte.
        document_start: regular expression; rows, and lines of text files, are joined into one document until one begins
            with a match. Not beside a separator.
        errors: "strict" refuses what is no text (invalid UTF-8, NUL), "replace" puts U+FFFD in its place.
        special_tokens: what becomes of the text of special tokens (`gptlab.tokenizer.core.SpecialPolicy`); none: text.
        ids: `text_column` holds token ids: in each row those of a document, or a part of one packed run of them; None:
            it holds text.
    """

    text_column: str = "text"
    separator: str | None = None
    document_start: str | None = None
    errors: Literal["strict", "replace"] = "strict"
    special_tokens: tuple[str, ...] = ()
    ids: Literal["documents", "packed"] | None = None

    def __post_init__(self) -> None:
        if self.ids is not None and (self.separator is not None or self.document_start is not None):
            raise DataError(
                f"{option('separator')} and {option('document_start')} are for text; with "
                f"{option('ids_column', argument='ids')}, {option('ids_rows', 'packed', argument='ids')} says that ids "
                "hold separators"
            )
        if self.separator is not None and self.document_start is not None:
            raise DataError(
                f"{option('separator')} and {option('document_start')} both say where documents begin; give one of them"
            )

    def options(self) -> dict[str, Any]:
        """What `dataset.json` says of it: what came later (than 0.3) only where it was asked for."""
        later = {"special_tokens": (), "ids": None}
        return {name: value for name, value in vars(self).items() if name not in later or value != later[name]}

    @property
    def column_option(self) -> str:
        """The option that names the column."""
        return option("ids_column", argument="text_column") if self.ids else option("text_column")

    def decode(self, data: bytes, source: str, offset: int) -> str:
        """UTF-8 bytes, which stand at `offset` of `source`, as text. Raises DataError naming the bad byte."""
        try:
            text = data.decode("utf-8")
            problem = f"a NUL at byte {offset + data.index(0)}" if "\0" in text else ""
        except UnicodeDecodeError as error:
            text, problem = data.decode("utf-8", errors="replace"), f"invalid UTF-8 at byte {offset + error.start}"
        if not problem:
            return text
        text = text.replace("\0", "\ufffd")
        replaced = text.count("\ufffd")
        if len(text) >= _JUDGED and replaced > _MOST_REPLACED * len(text):
            raise DataError(
                f"{source}: {problem}, and {replaced} of the {len(text)} characters from byte {offset} on are no UTF-8;"
                " it is binary or in another encoding: convert it first (iconv), or leave it out"
            )
        if self.errors == "strict":
            raise self._no_text(f"{source}: {problem}")
        return text

    def pick(self, row: object, source: str, place: str) -> object:
        """What the text column of a row (a mapping, nested or not) holds. Raises DataError where it has none."""
        found: object = row
        if not isinstance(row, Mapping) or self.text_column not in row:
            for part in self.text_column.split("."):
                if not isinstance(found, Mapping) or part not in found:
                    has = ", ".join(_field_names(row)) if isinstance(row, Mapping) else type(row).__name__
                    raise DataError(
                        f"{source}, {place}: no field {self.text_column!r} (it has: {has}); name the field"
                        f" with {self.column_option}"
                    )
                found = found[part]
            return found
        return row[self.text_column]

    def check_row(self, value: object, source: str, place: str) -> str | NDArray[Any]:
        """The text of a row, or its ids. Raises DataError where it is neither."""
        if self.ids is None:
            return self.check_text(value, source, place)
        try:
            ids = np.asarray([] if value is None else value)
            if ids.ndim == 1 and (ids.dtype.kind in "iu" or not len(ids)):
                return ids
        except (ValueError, OverflowError):  # rows in rows of different lengths
            pass
        raise DataError(
            f"{source}, {place}: {self.text_column!r} holds no list of token ids; name another column with "
            f"{self.column_option}"
        )

    def check_text(self, value: object, source: str, place: str) -> str:
        """The text of a row ("" for null); bytes are UTF-8. Raises DataError where it is no text."""
        if value is None:
            return ""
        if isinstance(value, bytes):
            return self.decode(value, f"{source}, {place}, {self.text_column!r}", 0)
        if not isinstance(value, str):
            raise DataError(
                f"{source}, {place}: {self.text_column!r} holds {_kind(value)}, not text; name another with "
                f"{option('text_column')}{_if_ids(value)}"
            )
        if "\0" in value:
            if self.errors == "strict":
                raise self._no_text(f"{source}, {place}: a NUL at character {value.index(chr(0))}")
            value = value.replace("\0", "\ufffd")
        if value.isascii():
            return value
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            if self.errors == "strict":
                raise self._no_text(f"{source}, {place}: half a surrogate pair") from None
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return value

    def _no_text(self, what: str) -> DataError:
        return DataError(
            f"{what}, which is no text; mend it, or accept U+FFFD in its place with {option('errors', 'replace')}"
        )

    def join_rows(self, found: Sequence[str | NDArray[Any]], source: str, first: bool) -> Iterator[Document]:
        """Rows as documents. `first` says that nothing comes before them, so that the first row begins one."""
        rows = [row for row in found if isinstance(row, str)]
        if self.ids is not None:
            ids = (row for row in found if not isinstance(row, str) and len(row))
            yield from (Document("", source, self.ids == "packed", row) for row in ids)
            return
        if self.document_start is None:
            yield from (Document(text, source) for text in rows if text)
            return
        begins = re.compile(self.document_start)
        starts = [number for number, row in enumerate(rows) if begins.match(row)]
        if not starts or starts[0] > 0:
            starts.insert(0, 0)
        for number, (start, stop) in enumerate(zip(starts, [*starts[1:], len(rows)], strict=True)):
            if text := "".join(rows[start:stop]):
                yield Document(text, source, continues=number == 0 and not first and not begins.match(rows[0]))


def _kind(value: object) -> str:
    return "list" if isinstance(value, np.ndarray) else type(value).__name__


def _if_ids(value: object) -> str:
    """What to do with a list of numbers."""
    numbers = isinstance(value, list | np.ndarray) and len(value) and isinstance(value[0], int | np.integer)
    return f", or read it as token ids with {option('ids_column', argument='ids')}" if numbers else ""


def row_size(row: object) -> int:
    """Bytes of a row's text or ids, about."""
    return len(row) if isinstance(row, str) else 4 * len(row) if isinstance(row, list | np.ndarray) else 0


def _field_names(row: Mapping[Any, Any], above: str = "") -> Iterator[str]:
    """The names of a row's fields as --text-column takes them."""
    for name, value in row.items():
        if isinstance(value, Mapping) and value:
            yield from _field_names(value, f"{above}{name}.")
        else:
            yield f"{above}{name}"


class BlockPlace(Protocol):
    """Where in the sources a block stands."""

    @property
    def source(self) -> str:
        """The file, or member of an archive, that it is of: the first document of each begins one."""

    @property
    def cursor(self) -> Cursor:
        """Reading from here gives this block first."""

    @property
    def source_bytes(self) -> int:
        """Bytes of the source that it covers, for progress."""


class Block(BlockPlace, Protocol):
    """A run of text that one worker turns into documents."""

    def documents(self, reading: Reading) -> Iterator[Document]:
        """The documents in it. Raises DataError where they are no text."""


@dataclass(frozen=True)
class RowsBlock:
    """Rows that the parent had to read itself: of huge Parquet row groups, Hugging Face streams, other tables."""

    cursor: Cursor
    source: str
    row: int
    rows: list[Any]
    first: bool  # nothing comes before them

    @property
    def source_bytes(self) -> int:
        return sum(map(row_size, self.rows))

    def documents(self, reading: Reading) -> Iterator[Document]:
        texts = [reading.check_row(row, self.source, f"row {number}") for number, row in enumerate(self.rows, self.row)]
        return reading.join_rows(texts, self.source, self.first)


def row_blocks(
    rows: Iterable[tuple[int, Any]], name: str, cursor: Callable[[int], Cursor], block_bytes: int, *, origin: int
) -> Iterator[Block]:
    """Numbered rows, read one by one, as blocks of about `block_bytes` characters.

    `origin`: the number of the first row that there is. `cursor` makes a block's cursor of the number of its first row.
    """
    start, held, size = origin, list[Any](), 0
    for number, text in rows:
        if not held:
            start = number
        held.append(text)
        size += row_size(text)
        if size >= block_bytes:
            yield RowsBlock(cursor(start), name, start, held, first=start == origin)
            held, size = [], 0
    if held:
        yield RowsBlock(cursor(start), name, start, held, first=start == origin)


class Source(Protocol):
    """Something to read text from."""

    @property
    def name(self) -> str:
        """What messages and `dataset.json` call it."""

    @property
    def is_stream(self) -> bool:
        """Whether reading it twice would fetch it twice."""

    def size(self, reading: Reading) -> int | None:
        """Bytes of the source, about; None where that is not known beforehand."""

    def identity(self) -> list[Any]:
        """What changes when the content does, as JSON values."""

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        """Blocks from `position` (of a cursor; None for the beginning) on. `number` goes into the cursors."""


def utf8_length(text: str) -> int:
    """Bytes of `text` in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def file_identity(path: Path) -> list[Any]:
    """What changes when a file does: its path, size and time of change."""
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


@contextlib.contextmanager
def damage_as_data_error(name: str) -> Iterator[None]:
    """Turn the errors of damaged files, and of files that cannot be read, into a DataError that names the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DataError) or not isinstance(error, _damage()):
            raise
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{name}: cannot be read ({error.strerror}); check the file") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: is damaged, cut off or no such format ({reason}); get the file again") from None


@functools.cache
def _damage() -> tuple[type[BaseException], ...]:
    import pyarrow

    # zipfile raises NotImplementedError for a member packed by a method that it cannot undo: as unreadable to us as a
    # damaged one.
    archives = (zipfile.BadZipFile, NotImplementedError, tarfile.TarError)
    return (OSError, EOFError, zlib.error, lzma.LZMAError, *archives, pyarrow.ArrowException)
