"""Every format that is read, cut at twenty places: refused by name, or read as far as it is complete."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from gptlab.data import TokenDataset, iter_documents, prepare
from gptlab.errors import DataError

CUTS = 20
TEXTS = ["".join(chr(c) for c in np.random.default_rng(n).integers(0x20, 0x2FF, 90)) for n in range(60)]
LONG = "".join(chr(c) for c in np.random.default_rng(0).integers(0x41, 0x5B, 500_000))
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def parquet() -> bytes:
    pq.write_table(pa.table({"text": TEXTS}), sink := io.BytesIO(), row_group_size=20)
    return sink.getvalue()


def arrow(writer: Callable[..., pa.RecordBatchWriter]) -> bytes:
    table, sink = pa.table({"text": TEXTS}), io.BytesIO()
    with writer(sink, table.schema) as out:
        out.write_table(table, max_chunksize=20)
    return sink.getvalue()


def zipped() -> bytes:
    with zipfile.ZipFile(sink := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for number, text in enumerate(TEXTS):
            archive.writestr(f"{number:02}.txt", text)
    return sink.getvalue()


def tarred() -> bytes:
    with tarfile.open(fileobj=(sink := io.BytesIO()), mode="w") as archive:
        for number, text in enumerate(TEXTS):
            entry = tarfile.TarInfo(f"{number:02}.txt")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return sink.getvalue()


WHOLE: dict[str, Callable[[], bytes]] = {
    "a.jsonl.gz": lambda: gzip.compress(LINES),
    "a.jsonl.zst": lambda: zstandard.compress(LINES),
    "a.jsonl.bz2": lambda: bz2.compress(LINES),
    "a.jsonl.xz": lambda: lzma.compress(LINES),
    "a.txt.zst": lambda: zstandard.compress(LONG.encode()),  # of several blocks: each is unpacked by itself
    "two.jsonl.bz2": lambda: bz2.compress(LINES[:3000]) + bz2.compress(LINES[3000:]),
    "two.jsonl.xz": lambda: lzma.compress(LINES[:3000]) + bytes(8) + lzma.compress(LINES[3000:]),
    "a.parquet": parquet,
    "file.arrow": lambda: arrow(pa.ipc.new_file),
    "stream.arrow": lambda: arrow(pa.ipc.new_stream),
    "a.json": lambda: json.dumps([{"text": text} for text in TEXTS]).encode(),
    "a.zip": zipped,
    "a.tar": tarred,
    "a.tar.gz": lambda: gzip.compress(tarred()),
    "a.tgz": lambda: gzip.compress(tarred()),
}


def refused_or_read(path: Path) -> tuple[list[str], str]:
    """The texts, or the error."""
    try:
        return texts(path), ""
    except DataError as error:
        return [], str(error)


def texts(path: Path) -> list[str]:
    found: list[str] = []
    for document in iter_documents([str(path)]):
        if document.continues:
            found[-1] += document.text
        else:
            found.append(document.text)
    return found


def cuts(size: int) -> list[int]:
    """Places in a file, its first and last bytes among them."""
    return sorted({0, 1, 2, 4, size - 9, size - 8, size - 1, *(size * i // CUTS for i in range(1, CUTS))})


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_cut_off_is_refused_by_name_or_complete(tmp_path: Path, name: str) -> None:
    content, path = WHOLE[name](), tmp_path / name
    path.write_bytes(content)
    whole = texts(path)
    assert whole == ([LONG] if name == "a.txt.zst" else TEXTS)
    for place in cuts(len(content)):
        path.write_bytes(content[:place])
        found, error = refused_or_read(path)
        if error:
            assert name in error
            assert len(error.splitlines()) == 1
        else:
            assert found == whole, f"cut at {place}"
            assert name == "a.tar", f"cut at {place}: no word about it"  # a tar's last kilobytes are padding


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_plain_text_is_what_is_there(tmp_path: Path, name: str) -> None:
    """A cut between lines or characters cannot be seen; one within is refused, with its place."""
    content = LINES if name == "a.jsonl" else "".join(TEXTS).encode()
    for place in cuts(len(content)):
        (tmp_path / name).write_bytes(content[:place])
        found, error = refused_or_read(tmp_path / name)
        if not error:
            read = "".join(json.dumps({"text": text}) + "\n" for text in found) if name == "a.jsonl" else found[0]
            assert read.encode().rstrip() == content[:place].rstrip()
        elif not place:
            assert f"{name}: no text in it" in error
        elif name == "a.jsonl":
            assert f"{name}, line {content[:place].count(10) + 1}: is no JSON or cut off" in error
        else:
            assert f"{name}: invalid UTF-8 at byte" in error


def test_shards_of_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("some words " * 200)
    prepare([str(tmp_path / "in.txt")], tmp_path / "set", tokenizer="byte", validation_fraction=0.1, workers=1)
    shard = tmp_path / "set" / "train_000001.bin"
    content = shard.read_bytes()
    for place in cuts(len(content)):
        shard.write_bytes(content[:place])
        with pytest.raises(DataError, match=r"train_000001\.bin"):
            TokenDataset.open(tmp_path / "set", "train")


def test_a_saved_data_set_without_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "data-00000-of-00002.arrow").write_bytes(arrow(pa.ipc.new_stream))
    shutil.copy(folder / "data-00000-of-00002.arrow", folder / "cache-0123.arrow")  # of .map(), and no part of it
    (folder / "dataset_info.json").write_text("{}")
    files = [{"filename": f"data-0000{n}-of-00002.arrow"} for n in (0, 1)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files[:1]}))
    assert texts(folder) == TEXTS
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow: is missing"):
        texts(folder)
    (folder / "state.json").write_text("[]")
    with pytest.raises(DataError, match=r"state\.json: does not say"):
        texts(folder)
