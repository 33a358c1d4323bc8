"""Archives, zip and tar: their text and JSON members, one after the other, without unpacking them to disk.

Members of one name but for the suffix are one sample, as in WebDataset's shards: where it has a text, its `.json` is a
description and is not read.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import itertools
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from gptlab.data.sources import jsonl, text
from gptlab.data.sources.base import BLOCK_BYTES, Block, Cursor, Document, Reading, Source
from gptlab.data.sources.streams import PACKED, PackedFile, as_stream, open_stream, say_once, suffixes, unpack
from gptlab.errors import DataError

NAMED = (".zip", ".tar", ".tgz", *(".tar" + packed for packed in PACKED))  # a folder's archive may hold its own texts

_JSON = (*jsonl.SUFFIXES, *jsonl.NAMED)
_TAR_BLOCK = 512


@dataclass(frozen=True)
class Member:
    """A file in an archive, to be read before the next one is asked for."""

    name: str
    size: int
    file: io.BufferedReader

    @property
    def sample(self) -> str:
        """What members of one sample have in common: the path up to the first dot of the name."""
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + name.partition(".")[0]


@dataclass(frozen=True)
class SmallMembers:
    """Whole members, one after the other, as one block: an archive may hold millions, each of a few words."""

    members: list[Block]

    @property
    def source(self) -> str:
        return self.members[0].source

    @property
    def cursor(self) -> Cursor:
        return self.members[0].cursor

    @property
    def source_bytes(self) -> int:
        return sum(member.source_bytes for member in self.members)

    def documents(self, reading: Reading) -> Iterator[Document]:
        for number, member in enumerate(self.members):
            for place, document in enumerate(member.documents(reading)):
                begins = number > 0 and place == 0  # of the first it is known elsewhere what came before
                yield dataclasses.replace(document, continues=False) if begins else document


def open_file(path: Path, name: str, block_bytes: int) -> Source:
    """The source that a file is."""
    return Archive(path, name, block_bytes)


@dataclass(frozen=True)
class Archive(PackedFile):
    """A zip or tar file; a tar may be compressed."""

    def size(self, reading: Reading) -> int | None:
        return None  # how much of it is text is known in the end

    def blocks(self, number: int, reading: Reading, position: Any) -> Iterator[Block]:
        first, inner = position or (0, None)
        left_out: collections.Counter[str] = collections.Counter()
        count = 0
        with open_stream(self.path, self.name) as file:
            members = (
                _zip_members(file, self.name) if self.path.suffix.lower() == ".zip" else _tar_members(file, self.name)
            )
            small, size = list[Block](), 0
            for member in _texts(members, left_out):
                if count >= first:
                    cursor = functools.partial(_cursor, number, count)
                    found = self._member_blocks(member, reading, cursor, inner if count == first else None)
                    begin = list(itertools.islice(found, 2))
                    is_whole = len(begin) < 2  # and is no part of a long text, whose parts are a block each
                    if small and (size >= self.block_bytes or not is_whole):
                        yield SmallMembers(small)
                        small, size = [], 0
                    if is_whole:
                        small += begin
                        size += sum(block.source_bytes for block in begin)
                    else:
                        yield from itertools.chain(begin, found)
                count += 1
            if small:
                yield SmallMembers(small)
        if not count:
            raise DataError(f"{self.name}: no text or JSON in it ({counted(left_out) or 'it is empty'})")
        if left_out:
            say_once(f"{self.name}: left out {counted(left_out)}")

    def _member_blocks(self, member: Member, reading: Reading, cursor: Any, start: Any) -> Iterator[Block]:
        name, path = f"{self.name}: {member.name}", Path(member.name)
        file = unpack(member.file, path.suffix.lower())
        if (suffix := suffixes(path)) in _JSON:
            lines = not jsonl.may_be_array(suffix)
            return jsonl.json_blocks(file, name, reading, cursor, start, self.block_bytes, lines=lines)
        return text.text_blocks(file, name, reading, cursor, start, None, self.block_bytes)


def _cursor(number: int, member: int, position: Any) -> Any:
    return number, [member, position]


def _texts(members: Iterator[Member], left_out: collections.Counter[str]) -> Iterator[Member]:
    """The members to be read; counts the others in `left_out`, by suffix."""
    held: Member | None = None  # a small .json: whether it describes a text is known when its sample is over
    text_sample = None
    for member in members:
        suffix = suffixes(Path(member.name))
        is_text = suffix in text.SUFFIXES or (suffix in _JSON and suffix != ".json")
        if held is not None:
            if is_text and held.sample == member.sample:
                left_out[".json beside a text"] += 1
            else:
                yield held
            held = None
        if is_text or (suffix == ".json" and member.size > BLOCK_BYTES):
            text_sample = member.sample
            yield member
        elif suffix == ".json" and member.sample != text_sample:
            held = Member(member.name, member.size, as_stream(io.BytesIO(member.file.read())))
        else:
            left_out[".json beside a text" if suffix == ".json" else suffix or "without suffix"] += 1
    if held is not None:
        yield held


def _is_hidden(name: str) -> bool:
    return any((part.startswith(".") and part.strip(".")) or part == "__MACOSX" for part in name.split("/"))


def _zip_members(file: io.BufferedReader, name: str) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.is_dir() or _is_hidden(entry.filename):
                continue
            if entry.flag_bits & 1:
                raise DataError(f"{name}: {entry.filename} is encrypted; unpack it first")
            with archive.open(entry) as member:
                yield Member(entry.filename, entry.file_size, as_stream(member))


def _tar_members(file: io.BufferedReader, name: str) -> Iterator[Member]:
    watched = _Watched(file)
    with tarfile.open(fileobj=cast(Any, watched), mode="r|") as archive:
        while (entry := archive.next()) is not None:
            cast(Any, archive).members.clear()  # it would keep every header of millions
            if entry.isreg() and not _is_hidden(entry.name):
                yield Member(entry.name, entry.size, as_stream(_Ahead(archive.extractfile(entry))))
        while watched.read(1 << 20):
            pass
        # tarfile takes an end of the file, and a damaged header, for the end of the archive
        if watched.bytes - archive.offset < _TAR_BLOCK or watched.content > archive.offset:
            raise DataError(f"{name}: is damaged or cut off after byte {archive.offset} (no end mark); get it again")


class _Ahead(io.RawIOBase):
    """A member of a stream, which cannot be gone back in."""

    def __init__(self, member: Any) -> None:
        self._member = member

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._member.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Watched:
    """Reads a file, and knows how many bytes were read and where the last one that is not 0 ended."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file, self.bytes, self.content = file, 0, 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if end := len(data.rstrip(b"\0")):
            self.content = self.bytes + end
        self.bytes += len(data)
        return data


def counted(left_out: collections.Counter[str]) -> str:
    """`3 .png, 1 .json`: the commonest first."""
    kinds = [f"{count} {kind}" for kind, count in left_out.most_common()]
    return ", ".join(kinds if len(kinds) <= 8 else [*kinds[:8], f"{left_out.total()} in all"])
