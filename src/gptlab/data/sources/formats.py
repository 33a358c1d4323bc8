"""What files are no text, known by their first bytes: a name says little about a file."""

from __future__ import annotations

import codecs

from gptlab.errors import DataError

_READ = (  # where the bytes stand, the bytes, the format, how a file that gptlab reads as such ends
    (0, b"\x1f\x8b", "a gzip", ".gz"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard", ".zst"),
    (0, b"BZh", "a bzip2", ".bz2"),
    (0, b"\xfd7zXZ\0", "an xz", ".xz"),
    (0, b"PK\x03\x04", "a zip", ".zip"),
    (257, b"ustar", "a tar", ".tar"),
    (0, b"PAR1", "a Parquet", ".parquet"),
    (0, b"ARROW1", "an Arrow", ".arrow"),
    (0, b"\xff\xff\xff\xff", "an Arrow", ".arrow"),
)
_NOT_READ = (
    (b"%PDF-", "a PDF"),
    (b"SQLite format 3\0", "a SQLite"),
    (b"\x89PNG", "a PNG"),
    (b"\xff\xd8\xff", "a JPEG"),
    (b"GIF8", "a GIF"),
    (b"RIFF", "a WAV, AVI or WebP"),
    (b"OggS", "an Ogg"),
    (b"fLaC", "a FLAC"),
    (b"ID3", "an MP3"),
    (b"\x7fELF", "an ELF"),
    (b"\0asm", "a WebAssembly"),
    (b"\x93NUMPY", "a NumPy"),
    (b"\x89HDF\r\n", "an HDF5"),
    (b"GGUF", "a GGUF"),
    (b"Obj\x01", "an Avro"),
    (b"ORC", "an ORC"),
    (b"\x04\x22\x4d\x18", "an lz4"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip"),
    (b"Rar!", "a RAR"),
    (b"\xd0\xcf\x11\xe0", "a Microsoft Office"),
    (b"\x88\xd8\x34\x01", "a token shard"),  # 20240520, little-endian
    (b"\xa1\xd9\x34\x01", "a token shard"),  # 20240801
    (b"\x80\x02", "a pickle"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
)
_WIDE = ((codecs.BOM_UTF16_LE, "UTF-16LE"), (codecs.BOM_UTF16_BE, "UTF-16BE"))
_CONTROLS = frozenset(range(32)) - frozenset(b"\t\n\v\f\r\x1b")


def refuse_binary(head: bytes, name: str) -> None:
    """Raise DataError, naming the format, where `head`, the first bytes of a file that is read as text, is none."""
    if _is_text(head):
        return
    for at, magic, format, suffix in _READ:
        if head.startswith(magic, at):
            raise DataError(f"{name}: is {format} file, no text; name it *{suffix} to have it read as one")
    for magic, format in _NOT_READ:
        if head.startswith(magic):
            raise DataError(f"{name}: is {format} file, no text; leave it out, or give the text that it holds")
    for mark, encoding in _WIDE:
        if head.startswith(mark):
            raise DataError(f"{name}: is {encoding} text; convert it first: iconv -f {encoding} -t UTF-8")


def _is_text(head: bytes) -> bool:
    """Whether bytes could be the beginning of UTF-8 text without control characters."""
    if not _CONTROLS.isdisjoint(head):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True
