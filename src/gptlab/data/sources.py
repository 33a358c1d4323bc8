"""Sources of text: files, folders, globs, URLs, Hugging Face datasets and the Python standard library.

Reading happens in two halves, so that the expensive one can be shared between processes. `read_blocks` goes
through the inputs in order and hands out *blocks*: about a megabyte of raw text, or the address of some
Parquet rows, with a cursor from which reading can start again. `Block.documents` turns a block into
documents and runs anywhere. What a block holds depends on the inputs alone, never on who reads it.

A text longer than a block comes in pieces (`Document.continues`), cut where tokenizers cut anyway: between an
alphanumeric character and a space that a letter follows.
"""

from __future__ import annotations

import copy
import functools
import glob
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import sysconfig
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol, cast

from gptlab.console import progress, say
from gptlab.errors import DataError

BLOCK_BYTES = 1 << 20
_ROW_GROUP_IN_WORKER = 1 << 26  # larger row groups are streamed by the parent: memory stays bounded
_CUT = re.compile(rb"[A-Za-z0-9](?= [A-Za-z])")
_FOLDER_SUFFIXES = re.compile(r"\.(parquet|(txt|text|md|jsonl|ndjson)(\.gz|\.zst)?|json\.(gz|zst))", re.I)
_LINES_SUFFIXES = re.compile(r"\.(jsonl|ndjson|json)(\.gz|\.zst)?", re.I)

Cursor = tuple[int, Any]
"""Where a block begins: number of the source, and a position that JSON can hold."""


@dataclass(frozen=True)
class Document:
    """One document, or where it is long a piece of one.

    Attributes:
        text: never empty.
        source: the file, URL or data set that it comes from.
        continues: whether it goes on with the document before rather than beginning a new one.
    """

    text: str
    source: str
    continues: bool = False


@dataclass(frozen=True)
class Reading:
    """How sources are to be understood.

    Attributes:
        text_column: the column or field that holds the text.
        separator: what stands between the documents of a text file (line ends around it are dropped); None
            takes each file as one document, byte for byte.
        document_start: regular expression; rows are joined into one document until a row begins with a match.
        errors: "strict" refuses text that is no valid Unicode, "replace" puts U+FFFD in its place.
    """

    text_column: str = "text"
    separator: str | None = None
    document_start: str | None = None
    errors: Literal["strict", "replace"] = "strict"

    def decode(self, data: bytes, source: str, offset: int) -> str:
        """UTF-8 bytes, which stand at `offset` of `source`, as text. Raises DataError naming the bad byte."""
        try:
            return data.decode("utf-8", errors=self.errors)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{source}: invalid UTF-8 at byte {offset + error.start}; mend the file, or accept U+FFFD"
                f" in its"
                " place with --errors replace"
            ) from None

    def checked(self, value: object, source: str, place: str) -> str:
        """The text of a row ("" for null). Raises DataError where it is no text or half a surrogate pair."""
        if value is None:
            return ""
        if not isinstance(value, str):
            raise DataError(
                f"{source}, {place}: {self.text_column!r} holds {type(value).__name__}, not text; name"
                f" another with"
                " --text-column"
            )
        if value.isascii():
            return value
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            if self.errors == "strict":
                raise DataError(
                    f"{source}, {place}: holds half a surrogate pair, which is no text; mend it, or"
                    f" accept U+FFFD in"
                    " its place with --errors replace"
                ) from None
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return value

    def join(self, rows: Sequence[str], source: str, first: bool) -> Iterator[Document]:
        """Rows as documents. `first` says that nothing comes before them, so that the first row begins
        one."""
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


class Block(Protocol):
    """A run of text that one worker turns into documents."""

    @property
    def cursor(self) -> Cursor:
        """Reading from here gives this block first."""

    @property
    def weight(self) -> int:
        """Bytes of the source that it stands for, for progress."""

    def documents(self, reading: Reading) -> Iterator[Document]:
        """The documents in it. Raises DataError where they are no text."""


@dataclass(frozen=True)
class TextBlock:
    """Bytes of a text file, from byte `offset` on."""

    cursor: Cursor
    source: str
    offset: int
    data: bytes
    continues: bool  # the file's text before it belongs to the same document
    ends: bool  # the last document in it ends with it

    @property
    def weight(self) -> int:
        return len(self.data)

    def documents(self, reading: Reading) -> Iterator[Document]:
        text = reading.decode(self.data, self.source, self.offset)
        parts = [text] if reading.separator is None else text.split(reading.separator)
        for number, part in enumerate(parts):
            continues = self.continues and number == 0
            if reading.separator is not None:
                ends = self.ends or number < len(parts) - 1
                part = part.rstrip("\r\n") if ends else part
                # A first piece of nothing but line ends is kept, since the pieces after it need its
                # beginning.
                part = part if continues else (part.lstrip("\r\n") or ("" if ends else part))
            if part:
                yield Document(part, self.source, continues)


@dataclass(frozen=True)
class LinesBlock:
    """Whole lines of a JSON-lines file, from line `line` (counted from 1) on."""

    cursor: Cursor
    source: str
    offset: int
    line: int
    data: bytes

    @property
    def weight(self) -> int:
        return len(self.data)

    def documents(self, reading: Reading) -> Iterator[Document]:
        return reading.join(list(self._rows(reading)), self.source, first=self.offset == 0)

    def _rows(self, reading: Reading) -> Iterator[str]:
        offset = self.offset
        for number, line in enumerate(self.data.split(b"\n"), self.line):
            if line.strip():
                yield self._text(reading.decode(line, self.source, offset), reading, number)
            offset += len(line) + 1

    def _text(self, line: str, reading: Reading, number: int) -> str:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.source}, line {number}: is no JSON ({error}); mend or remove the line") from None
        if not isinstance(row, dict) or reading.text_column not in row:
            fields = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise DataError(
                f"{self.source}, line {number}: no field {reading.text_column!r} (it has: {fields}); name"
                f" the field of"
                " the text with --text-column"
            )
        return reading.checked(row[reading.text_column], self.source, f"line {number}")


@dataclass(frozen=True)
class ParquetBlock:
    """Rows `start` … `stop - 1` of a row group of a Parquet file, read by whoever needs them."""

    cursor: Cursor
    source: str
    path: str
    row_group: int
    start: int
    stop: int
    weight: int

    def documents(self, reading: Reading) -> Iterator[Document]:
        rows = _row_group(self.path, self.row_group, reading.text_column)[self.start : self.stop].to_pylist()
        texts = [
            reading.checked(text, self.source, f"row group {self.row_group}, row {number}")
            for number, text in enumerate(rows, self.start)
        ]
        return reading.join(texts, self.source, first=self.row_group == 0 and self.start == 0)


@dataclass(frozen=True)
class RowsBlock:
    """Rows that the parent had to read itself: of huge Parquet row groups, and of Hugging Face streams."""

    cursor: Cursor
    source: str
    row: int
    rows: list[Any]
    first: bool  # nothing comes before them

    @property
    def weight(self) -> int:
        return sum(len(row) for row in self.rows if isinstance(row, str))

    def documents(self, reading: Reading) -> Iterator[Document]:
        texts = [reading.checked(row, self.source, f"row {number}") for number, row in enumerate(self.rows, self.row)]
        return reading.join(texts, self.source, self.first)


class Source(Protocol):
    """Something to read text from."""

    @property
    def name(self) -> str:
        """What messages and `dataset.json` call it."""

    def size(self, reading: Reading) -> int | None:
        """Sum of the weights of all blocks, about; None where that is not known beforehand."""

    def identity(self) -> list[Any]:
        """What changes when the content does, as JSON values."""

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        """Blocks from `position` (of a cursor; None for the beginning) on. `number` goes into the cursors."""


@dataclass(frozen=True)
class TextFile:
    """A text or JSON-lines file, plain or compressed. `start` and `stop` take a part of a plain text."""

    path: Path
    name: str
    start: int = 0
    stop: int | None = None
    block_bytes: int = BLOCK_BYTES

    @property
    def is_lines(self) -> bool:
        return _LINES_SUFFIXES.fullmatch(_suffixes(self.path)) is not None

    def size(self, reading: Reading) -> int | None:
        if self.path.suffix.lower() in (".gz", ".zst"):
            return None
        return (self.stop if self.stop is not None else self.path.stat().st_size) - self.start

    def identity(self) -> list[Any]:
        return [*_identity(self.path), self.start, self.stop, self.block_bytes]

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        with _open(self.path) as file, _readable(self.name):
            yield from (self._lines if self.is_lines else self._text)(file, number, reading, position)

    def _lines(self, file: IO[bytes], number: int, reading: Reading, position: Any) -> Iterator[Block]:
        offset, line = position or (0, 1)
        file.seek(offset)

        def whole_lines(content: bytes) -> int:
            return content.rfind(b"\n") + 1

        for data, _ in _cut_up(file, None, self.block_bytes, whole_lines):
            yield LinesBlock((number, [offset, line]), self.name, offset, line, data)
            offset, line = offset + len(data), line + data.count(b"\n")

    def _text(self, file: IO[bytes], number: int, reading: Reading, position: Any) -> Iterator[Block]:
        separator = reading.separator.encode() if reading.separator is not None else None
        offset, continues = position or (self.start, False)
        file.seek(offset)
        left = self.stop - offset if self.stop is not None else None
        cut = functools.partial(_cut, separator=separator, block_bytes=self.block_bytes)
        for data, at_end in _cut_up(file, left, self.block_bytes, cut):
            ends = at_end or (separator is not None and data.endswith(separator))
            yield TextBlock((number, [offset, continues]), self.name, offset, data, continues, ends)
            offset, continues = offset + len(data), not ends


def _cut_up(
    file: IO[bytes], left: int | None, block_bytes: int, cut: Callable[[bytes], int]
) -> Iterator[tuple[bytes, bool]]:
    """The rest of `file` (or `left` bytes of it) in blocks, each with whether it is the last.

    A block is decided by the bytes from its beginning on, never by where reading began: `cut` sees `block_bytes`
    of them, and twice as many as long as it answers 0.
    """
    buffer, wanted = b"", block_bytes
    while True:
        missing = max(0, wanted - len(buffer))
        content = file.read(missing if left is None else min(missing, left))
        left = left - len(content) if left is not None else None
        buffer += content
        seen = buffer[:wanted]
        end = cut(seen)
        if 0 < end < len(buffer) or (end and len(seen) == wanted):
            yield seen[:end], False
            buffer, wanted = buffer[end:], block_bytes
        elif len(seen) == wanted:
            wanted *= 2
        else:
            if buffer:
                yield buffer, True
            return


def _cut(content: bytes, separator: bytes | None, block_bytes: int) -> int:
    """Where to end a block of text within `content`; 0: read on first."""
    if separator is not None and (found := content.rfind(separator)) >= 0:
        return found + len(separator)
    if len(content) < block_bytes:
        return 0
    # A separator may have begun at the very end: keep clear of it.
    limit = len(content) - (len(separator) if separator is not None else 1)
    window = max(0, limit - (1 << 16))
    cuts = [match.end() for match in _CUT.finditer(content, window, limit)]
    if cuts:
        return cuts[-1]
    newline = content.rfind(b"\n", window, limit)
    if newline > 0:
        return newline
    while limit > 0 and content[limit] & 0xC0 == 0x80:  # inside a UTF-8 character
        limit -= 1
    return max(limit, 0)


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file; its row groups are read in the workers, in slices."""

    path: Path
    name: str

    def size(self, reading: Reading) -> int | None:
        metadata, column = _parquet_metadata(self.path, reading.text_column)
        sizes = (metadata.row_group(i).column(column).total_uncompressed_size for i in range(metadata.num_row_groups))
        return int(sum(sizes))

    def identity(self) -> list[Any]:
        return _identity(self.path)

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        metadata, column = _parquet_metadata(self.path, reading.text_column)
        first_group, first_row = position or (0, 0)
        for group in range(first_group, metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            size = metadata.row_group(group).column(column).total_uncompressed_size
            skip = first_row if group == first_group else 0
            if size > _ROW_GROUP_IN_WORKER:
                yield from self._streamed(number, group, skip, reading)
                continue
            slices = max(1, min(8, size // BLOCK_BYTES))
            edges = [rows * i // slices for i in range(slices + 1)]
            for start, stop in itertools.pairwise(edges):
                if start >= skip and stop > start:
                    cursor = (number, [group, start])
                    weight = size * (stop - start) // rows
                    yield ParquetBlock(cursor, self.name, str(self.path), group, start, stop, weight)

    def _streamed(self, number: int, group: int, skip: int, reading: Reading) -> Iterator[Block]:
        import pyarrow.parquet as pq

        row = 0
        with _readable(self.name), pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(256, row_groups=[group], columns=[reading.text_column]):
                if row >= skip:
                    texts = batch.column(0).to_pylist()
                    yield RowsBlock((number, [group, row]), self.name, row, texts, group == 0 and row == 0)
                row += batch.num_rows


@dataclass(frozen=True)
class HubDataset:
    """A Hugging Face dataset, streamed through the `datasets` library."""

    name: str
    dataset: str
    config: str | None
    split: str

    def size(self, reading: Reading) -> int | None:
        return None

    def identity(self) -> list[Any]:
        return [self.name]

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        stream = self._open()
        row, state = position or (0, None)
        if state is not None:
            stream.load_state_dict(state)
        start, rows, size = row, [], 0
        state = copy.deepcopy(stream.state_dict())
        for example in self._examples(stream):
            if reading.text_column not in example:
                raise DataError(
                    f"{self.name}: no column {reading.text_column!r} (it has: {', '.join(example)}); name"
                    f" the column"
                    " of the text with --text-column"
                )
            rows.append(example[reading.text_column])
            size += len(rows[-1] or "") if isinstance(rows[-1], str) else 0
            row += 1
            if size >= BLOCK_BYTES:
                yield RowsBlock((number, [start, state]), self.name, start, rows, start == 0)
                start, rows, size, state = row, [], 0, copy.deepcopy(stream.state_dict())
        if rows:
            yield RowsBlock((number, [start, state]), self.name, start, rows, start == 0)

    def _open(self) -> Any:
        try:
            import datasets
        except ImportError:
            raise DataError(
                f"{self.name}: Hugging Face datasets need an extra; install it with: pip install 'gptlab[hub]'"
            ) from None
        try:
            return datasets.load_dataset(self.dataset, self.config, split=self.split, streaming=True)
        except Exception as error:  # the library raises errors of a dozen packages; all mean "cannot be had"
            raise self._unavailable(error) from None

    def _examples(self, stream: Any) -> Iterator[dict[str, Any]]:
        iterator = iter(stream)
        while True:
            try:
                example = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # as above: network, decoding, schema
                raise self._unavailable(error) from None
            yield example

    def _unavailable(self, error: Exception) -> DataError:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        return DataError(
            f"{self.name}: cannot be read ({type(error).__name__}: {reason}); check name, config, split"
            f" and network, or"
            " give downloaded files with --input"
        )


def resolve(inputs: Sequence[str], *, cache: Path | None = None, block_bytes: int = BLOCK_BYTES) -> list[Source]:
    """What `inputs` name, in order: files, folders, globs, URLs, `hf://NAME[:CONFIG][@SPLIT]`,
    `stdlib:SPLIT`.

    URLs are downloaded into `cache` first (default: GPTLAB_CACHE, or `~/.cache/gptlab`). A folder gives its
    Parquet, JSON-lines and text files (.txt, .md), at any depth, in the order of their paths.

    Raises DataError where something is missing, holds no text files, or cannot be downloaded.
    """
    sources: list[Source] = []
    for given in inputs:
        if given.startswith("hf://"):
            sources.append(_hub_dataset(given))
        elif given.startswith("stdlib:"):
            sources.extend(_standard_library(given))
        elif re.match(r"https?://", given):
            sources.append(_file(download(given, cache), given, block_bytes))
        elif "://" in given:
            raise DataError(f"{given}: is no kind of input that gptlab reads; use http, https or hf, or a local path")
        else:
            sources.extend(_file(path, str(path), block_bytes) for path in _local_files(given))
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


def utf8_length(text: str) -> int:
    """Bytes of `text` in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def cache_folder(cache: Path | None = None) -> Path:
    """Where downloads are kept: `cache`, else GPTLAB_CACHE, else `~/.cache/gptlab`."""
    return cache or Path(os.environ.get("GPTLAB_CACHE") or "~/.cache/gptlab").expanduser()


def download(url: str, cache: Path | None = None) -> Path:
    """The file behind an http(s) URL, fetched once and then kept in the cache.

    Raises DataError where the network or the server refuses; nothing is left in the cache then.
    """
    name = Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path)).name or "download"
    target = cache_folder(cache) / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if target.exists():
        return target
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(url, headers={"User-Agent": "gptlab"})
        with (
            urllib.request.urlopen(request, timeout=60) as answer,
            open(aside, "wb") as file,
            progress() as bar,
        ):
            length = answer.headers.get("Content-Length")
            task = bar.add_task(f"downloading {name}", total=int(length) if length else None)
            while content := answer.read(1 << 18):
                file.write(content)
                bar.advance(task, len(content))
            if length and file.tell() != int(length):
                raise OSError(f"got {file.tell()} of {length} bytes")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
    except (OSError, ValueError) as error:  # URLError, HTTPError and timeouts are OSErrors
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{url}: cannot be downloaded ({reason}); check the address and the network, or give a local"
            f" file with"
            " --input"
        ) from None
    finally:
        aside.unlink(missing_ok=True)
    return target


def _local_files(given: str) -> list[Path]:
    path = Path(given).expanduser()
    if path.is_dir():
        files = sorted(
            file for file in path.rglob("*") if file.is_file() and _FOLDER_SUFFIXES.fullmatch(_suffixes(file))
        )
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


def _suffixes(path: Path) -> str:
    """`.jsonl.gz` of `a.b.jsonl.gz`: the last suffix, with the one before where the last only says
    "compressed"."""
    stem = Path(path.stem)
    return (stem.suffix if path.suffix.lower() in (".gz", ".zst") else "") + path.suffix


def _file(path: Path, name: str, block_bytes: int) -> Source:
    return (
        ParquetFile(path, name) if path.suffix.lower() == ".parquet" else TextFile(path, name, block_bytes=block_bytes)
    )


def _identity(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _hub_dataset(given: str) -> HubDataset:
    match = re.fullmatch(r"hf://([^:@]+)(?::([^@]+))?(?:@(.+))?", given)
    if match is None:
        raise DataError(f"{given}: is no dataset name; write hf://OWNER/NAME, hf://OWNER/NAME:CONFIG@SPLIT")
    return HubDataset(given, match[1], match[2], match[3] or "train")


def _standard_library(given: str) -> list[Source]:
    """The sources of the running Python's standard library; a tenth of the files, by hash, is for
    validation."""
    split = given.removeprefix("stdlib:")
    if split not in ("train", "validation"):
        raise DataError(f"{given}: no such part; use stdlib:train or stdlib:validation")
    root = Path(sysconfig.get_path("stdlib"))
    leave_out = {
        "test",
        "tests",
        "idlelib",
        "site-packages",
        "dist-packages",
        "ensurepip",
        "lib2to3",
        "__pycache__",
    }
    sources: list[Source] = []
    skipped = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if leave_out.intersection(relative.parts):
            continue
        tenth = int(hashlib.sha256(relative.as_posix().encode()).hexdigest()[:8], 16) % 10 == 0
        if tenth != (split == "validation"):
            continue
        try:
            path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            skipped.append(relative.as_posix())
            continue
        sources.append(TextFile(path, f"stdlib:{relative.as_posix()}"))
    if skipped:
        say(f"{given}: left out {len(skipped)} files that are no readable UTF-8: {', '.join(skipped)}")
    if not sources:
        raise DataError(f"{root}: no Python sources here; this Python comes without its library, give --input")
    return sources


def _open(path: Path) -> IO[bytes]:
    try:
        if path.suffix.lower() == ".gz":
            return cast(IO[bytes], gzip.open(path, "rb"))
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror or error})") from None
    if path.suffix.lower() != ".zst":
        return file
    import zstandard

    return _Zstandard(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=True))


class _Zstandard(io.BufferedReader):
    """A decompressed stream that can skip ahead, as gzip's can."""

    def seek(self, offset: int, whence: int = 0) -> int:
        left = offset
        while left > 0 and (skipped := len(self.read(min(left, 1 << 20)))):
            left -= skipped
        return offset - left


class _readable:
    """Turns the errors of damaged files into a DataError that names the file."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, DataError) or not isinstance(error, _damage()):
            return
        raise DataError(f"{self.name}: is damaged or no such format ({error}); get the file again") from None


@functools.cache
def _damage() -> tuple[type[BaseException], ...]:
    import pyarrow
    import zstandard

    return (OSError, EOFError, zlib.error, zstandard.ZstdError, pyarrow.ArrowException)


def _parquet_metadata(path: Path, column: str) -> tuple[Any, int]:
    """The file's metadata and the number of `column` among its leaves."""
    import pyarrow.parquet as pq

    with _readable(str(path)):
        metadata = pq.read_metadata(path)
    leaves = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    if column not in leaves:
        raise DataError(
            f"{path}: no column {column!r} (it has: {', '.join(leaves)}); name the column of the text"
            f" with --text-column"
        )
    return metadata, leaves.index(column)


@functools.lru_cache(maxsize=1)  # the slices of a row group follow each other
def _row_group(path: str, row_group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    with _readable(path), pq.ParquetFile(path) as file:
        return file.read_row_group(row_group, columns=[column], use_threads=False).column(0)


def names_of(sources: Iterable[Source], limit: int = 100) -> list[str]:
    """Names for `dataset.json`: all, or the first `limit` and how many more."""
    names = [source.name for source in sources]
    return names if len(names) <= limit else [*names[:limit], f"… and {len(names) - limit} more"]


def character_split(source: Source, fraction: float) -> tuple[TextFile, TextFile] | None:
    """A plain text file cut in order, by characters: the first `1 - fraction` of it, and the rest.

    None where `source` is no plain text file. As nanoGPT does: the first int(n (1 - fraction)) of n
    characters.
    """
    if not isinstance(source, TextFile) or source.is_lines or source.size(Reading()) is None:
        return None
    import numpy as np

    def starts(data: bytes) -> Any:  # where a character begins: every byte that does not continue one
        return np.flatnonzero((np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80)

    with open(source.path, "rb") as file:
        characters = sum(len(starts(data)) for data in iter(lambda: file.read(1 << 24), b""))
        left, cut = int(characters * (1 - fraction)), 0
        file.seek(0)
        for data in iter(lambda: file.read(1 << 24), b""):
            found = starts(data)
            if left < len(found):
                cut += int(found[left])
                break
            left, cut = left - len(found), cut + len(data)
    head = TextFile(source.path, source.name, 0, cut, source.block_bytes)
    return head, TextFile(source.path, source.name, cut, None, source.block_bytes)
