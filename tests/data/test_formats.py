"""What a file holds decides, not only its name: binary files are named, archives and tables are read."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from gptlab.data import Document, Reading, iter_documents
from gptlab.data.sources import jsonl, read_blocks, streams, tables
from gptlab.data.sources.resolve import resolve
from gptlab.errors import DataError, GptlabError


def documents(*inputs: object, **options: object) -> list[Document]:
    return list(iter_documents([str(name) for name in inputs], **options))  # type: ignore[arg-type]


def texts(*inputs: object, **options: object) -> list[str]:
    return [document.text for document in documents(*inputs, **options)]


def tar(members: dict[str, bytes]) -> bytes:
    with tarfile.open(fileobj=(sink := io.BytesIO()), mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return sink.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(sink := io.BytesIO(), "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return sink.getvalue()


def arrow(columns: dict[str, object], writer: Callable[..., pa.RecordBatchWriter] = pa.ipc.new_stream) -> bytes:
    table, sink = pa.table(columns), io.BytesIO()
    with writer(sink, table.schema) as out:
        out.write_table(table, max_chunksize=100)
    return sink.getvalue()


def parquet(columns: dict[str, object]) -> bytes:
    pq.write_table(pa.table(columns), sink := io.BytesIO())
    return sink.getvalue()


def npy() -> bytes:
    np.save(sink := io.BytesIO(), np.arange(9))
    return sink.getvalue()


BINARY = {
    "tar": tar({"a.txt": b"text"}),
    "gzip": gzip.compress(b"text"),
    "bzip2": bz2.compress(b"text"),
    "xz": lzma.compress(b"text"),
    "Zstandard": zstandard.compress(b"text"),
    "zip": zipped({"a.txt": b"text"}),
    "Arrow": arrow({"text": ["a"]}),
    "Parquet": parquet({"text": ["a"]}),
    "NumPy": npy(),
    "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "SQLite": b"SQLite format 3\0\x10\0",
    "pickle": pickle.dumps({"a": 1}, protocol=4),
    "GGUF": b"GGUF\x03\0\0\0",
    "token shard": np.array([20240520, 1, 3], dtype="<i4").tobytes(),
    "UTF-16LE": "text".encode("utf-16"),
}


@pytest.mark.parametrize("what", BINARY)
@pytest.mark.parametrize("errors", ["strict", "replace"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "noname"])
def test_a_binary_file_is_named_whatever_it_is_called(tmp_path: Path, what: str, errors: str, name: str) -> None:
    (tmp_path / name).write_bytes(BINARY[what])
    with pytest.raises(DataError, match=rf"{name}: is .*{what}") as raised:
        texts(tmp_path / name, errors=errors)
    assert "errors=" not in str(raised.value)


def test_what_only_begins_like_one_is_text(tmp_path: Path) -> None:
    for begin in (
        "PK\x03 is short",
        "ORC armies",
        "RIFF and raff",
        "BZh",
        "GIF8",
        "%PDF-",
        "Rar!",
        "ID3",
        "ARROW1",
        "PAR1",
    ):
        text = begin.replace("\x03", "")
        (tmp_path / "a.txt").write_text(text)
        assert texts(tmp_path / "a.txt") == [text]


def test_text_with_a_nul_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("é and \0 more".encode())
    (tmp_path / "b.jsonl").write_text('{"text": "a\\u0000b"}')
    pq.write_table(pa.table({"text": ["fine", "a\0b"]}), tmp_path / "c.parquet")
    for name, place in (("a.txt", "byte 7"), ("b.jsonl", "line 1"), ("c.parquet", "row group 0, row 1")):
        with pytest.raises(DataError, match=rf"{name}.*{place}|{place}.*{name}"):
            texts(tmp_path / name)
    assert texts(tmp_path / "b.jsonl", errors="replace") == ["a\ufffdb"]


def test_replacing_does_not_make_text_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(("Съешь же ещё этих мягких французских булок. " * 50).encode("cp1251"))
    for errors in ("strict", "replace"):
        with pytest.raises(DataError, match=r"a\.txt: .*\d+ of the \d+ characters .*another encoding") as refused:
            texts(tmp_path / "a.txt", errors=errors)
        assert "errors=" not in str(refused.value)  # it would not help


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.txt.gz"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    content = {"a.jsonl": '{"text": "one"}', "a.json": '[{"text": "one"}]', "a.csv": "text\none"}.get(name, "one")
    data = ("\ufeff" + content).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert texts(tmp_path / name) == ["one"]


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
def test_compressed_text_is_unpacked(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    name = "a.txt.bz2" if pack is bz2.compress else "a.txt.xz"
    (tmp_path / name).write_bytes(pack(b"one ") + pack(b"two"))
    assert texts(tmp_path) == ["one two"]
    (tmp_path / name).write_bytes(pack(b"one ") + b"rubbish" * 20)
    with pytest.raises(DataError, match=r"is damaged, cut off"):
        texts(tmp_path)


@pytest.mark.parametrize("packed", ["", ".gz", ".zst", ".bz2", ".xz"])
def test_samples_of_a_webdataset(tmp_path: Path, packed: str) -> None:
    """The text of a sample, whatever stands beside it; a .json is text only where there is no other."""
    members = {
        "0001.jpg": b"\xff\xd8\xff\0",
        "0001.json": b'{"width": 3}',
        "0001.txt": b"one",
        "0002.json": b'{\n "text": "two"\n}',
        "0002.jpg": b"\xff\xd8\xff\0",
        "0003.txt": b"three",
        "0003.json": b'{"width": 3}',
        "sub/0003.json": b'[{"text": "four"}, {"text": "five"}]',
        ".hidden.txt": b"no",
        "b.jsonl.gz": gzip.compress(b'{"text": "six"}\n'),
    }
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    (tmp_path / f"a.tar{packed}").write_bytes(pack[packed](tar(members)))
    (tmp_path / "a.zip").write_bytes(zipped(members))
    for path in (tmp_path / f"a.tar{packed}", tmp_path / "a.zip"):
        assert texts(path) == ["one", "two", "three", "four", "five", "six"]
        sources = resolve([str(path)])
        blocks = list(read_blocks(sources, Reading()))
        for number, block in enumerate(blocks):
            cursor = json.loads(json.dumps(block.cursor))
            assert list(read_blocks(sources, Reading(), (cursor[0], cursor[1]))) == blocks[number:]


def test_an_archive_without_text_says_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"a.png": b"", "b.png": b"", "c.exe": b""}))
    with pytest.raises(DataError, match=r"a\.zip: no text or JSON in it \(2 \.png, 1 \.exe\)"):
        texts(tmp_path / "a.zip")
    (tmp_path / "b.zip").write_bytes(zipped({"a.png": b"", "b.txt": b"text", "c.txt": b"bad \xff"}))
    with pytest.raises(DataError, match=r"b\.zip: c\.txt: invalid UTF-8 at byte 4"):
        texts(tmp_path / "b.zip")
    (tmp_path / "c.tar").write_bytes(tar({"a.txt": b"one", "b.cls": b"7"}))
    assert texts(tmp_path / "c.tar") == ["one"]
    assert "c.tar: left out 1 .cls" in capsys.readouterr().err


def test_a_damaged_header_is_no_end_of_a_tar(tmp_path: Path) -> None:
    content = bytearray(tar({"a.txt": b"one", "b.txt": b"two"}))
    content[1024 + 3] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tar: is damaged"):
        texts(tmp_path / "a.tar")


@pytest.mark.parametrize("writer", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_is_read_and_goes_on_from_any_block(tmp_path: Path, writer: Callable[..., pa.RecordBatchWriter]) -> None:
    rows = [f"row {number} " + "é" * (9000 if number % 2 else 1) for number in range(450)]
    (tmp_path / "a.arrow").write_bytes(arrow({"text": rows, "id": range(450)}, writer))
    assert texts(tmp_path) == rows
    sources = resolve([str(tmp_path / "a.arrow")])
    blocks = list(read_blocks(sources, Reading()))
    assert len(blocks) >= 5
    assert list(read_blocks(sources, Reading(), blocks[3].cursor)) == blocks[3:]
    with pytest.raises(DataError, match=r"no column 'body' \(it has: text, id\)"):
        texts(tmp_path, text_column="body")


def test_what_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {
        name: datasets.Dataset.from_dict({"text": [f"{name} {n}" for n in range(50)]}) for name in ("train", "test")
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved", num_shards={"train": 3, "test": 1})
    assert texts(tmp_path / "saved" / "train") == [f"train {n}" for n in range(50)]
    with pytest.raises(DataError, match=r"several splits; name the one to read: .*saved/test, .*saved/train"):
        texts(tmp_path / "saved")


def test_tables_ask_for_their_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,body\n1,"one, and\nmore ""quoted"""\n\n2,two\n3,\n')
    (tmp_path / "a.tsv").write_text("id\tbody\n1\tone, and\n")
    with pytest.raises(DataError, match=r"a\.csv: no column 'text' .*\(id, body\); .*text_column"):
        texts(tmp_path / "a.csv")
    assert texts(tmp_path / "a.csv", text_column="body") == ['one, and\nmore "quoted"', "two"]
    assert texts(tmp_path / "a.tsv", text_column="body") == ["one, and"]
    for content, message in (('id,body\n1,"one', r"line 2: .*cut off"), ("id,body\n1", r"line 2: 1 columns where")):
        (tmp_path / "a.csv").write_text(content)
        with pytest.raises(DataError, match=message):
            texts(tmp_path / "a.csv", text_column="body")


def test_tables_go_on_from_any_block(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("text\n" + "".join(f"row {number}\n" for number in range(99)))
    source = tables.open_file(tmp_path / "b.csv", "b", 100)
    blocks = list(source.blocks(0, Reading(), None))
    assert [text for block in blocks for text in block.rows] == [f"row {n}" for n in range(99)]  # type: ignore[attr-defined]
    assert list(source.blocks(0, Reading(), blocks[3].cursor[1])) == blocks[3:]


ARRAYS = {
    "objects": '[{"text": "one"}, {"text": "two é"}]',
    "strings": ' \n["one", "two é", "", null]\n',
    "lines": '{"text": "one"}\n{"text": "two é"}\n',
    "pretty objects": '{\n "text": "one"\n}\n{\n "text": "two é"\n}',
    "pretty": json.dumps([{"text": "one"}, {"text": "two é"}], indent=2),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("read", [1, 1 << 16])
def test_json_of_any_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, read: int) -> None:
    monkeypatch.setattr(jsonl, "_READ_BYTES", read)
    (tmp_path / "a.json").write_text(ARRAYS[kind])
    assert texts(tmp_path / "a.json") == ["one", "two é"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "value 0: no field 'text'"),
        ('[{"text": "a"} {"text": "b"}]', "value 1: is no JSON or cut off .*',' or"),
        ('[{"text": "a"},]', "a value is missing"),
        ('[{"text": "a"}] more', "more after its end"),
        ('[{"text": "a"}, {"tex', "value 1: is no JSON or cut off"),
        ("[" * 5000 + '"a"', "value 0: is no JSON or cut off"),
        ('[{"text": nul, "more": "' + "x" * 500 + '"}]', "value 0: is no JSON or cut off .Expecting value"),
    ],
)
def test_json_that_is_none(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=rf"a\.json, {message}|a\.json.*{message}"):
        texts(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.txt.gz"])
def test_a_line_without_end_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    limit, size = 1 << 22, 1 << 26
    for module in (streams, jsonl, tables):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", limit)
    begin = {"a.json.gz": b'["', "a.csv.gz": b'text\n"'}.get(name, b"")
    (tmp_path / name).write_bytes(gzip.compress(begin + b"x" * size, compresslevel=1))
    tracemalloc.start()
    try:
        if name == "a.txt.gz":  # a text is cut into pieces wherever it can be
            assert sum(len(document.text) for document in iter_documents([str(tmp_path / name)])) == size
        else:
            with pytest.raises(DataError, match=rf"{name}: a (line|JSON value) of more than 4 MiB"):
                texts(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def test_a_nested_column_is_named_as_the_message_says(tmp_path: Path) -> None:
    rows = [{"text": "one", "n": 1}, {"text": "two", "n": 2}, None]
    pq.write_table(pa.table({"doc": rows, "a.b": ["x", "y", "z"], "tags": [["t"]] * 3}), tmp_path / "a.parquet")
    (tmp_path / "a.arrow").write_bytes(arrow({"doc": rows, "a.b": ["x", "y", "z"]}))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"doc": row, "a.b": "x"}) for row in rows[:2]))
    for name in ("a.parquet", "a.arrow", "a.jsonl"):
        with pytest.raises(DataError, match=r"no (column|field) 'text' \(it has: doc\.text, doc\.n, a\.b"):
            texts(tmp_path / name)
        assert texts(tmp_path / name, text_column="doc.text") == ["one", "two"]
        assert texts(tmp_path / name, text_column="a.b")[0] == "x"
    with pytest.raises(DataError, match=r"no column 'doc' \(it has: doc\.text"):
        texts(tmp_path / "a.parquet", text_column="doc")
    with pytest.raises(DataError, match=r"'tags' holds list, not text"):
        texts(tmp_path / "a.parquet", text_column="tags")


def test_invalid_utf8_in_a_column_names_row_and_column(tmp_path: Path) -> None:
    column = pa.array([b"fine", b"bad \xff", b"caf\xc3\xa9"]).view(pa.string())
    pq.write_table(pa.table({"body": column}), tmp_path / "a.parquet")
    (tmp_path / "a.arrow").write_bytes(arrow({"body": column}))
    for name, place in (("a.parquet", "row group 0, row 1"), ("a.arrow", "row 1")):
        with pytest.raises(DataError, match=rf"{name}, {place}, 'body': invalid UTF-8 at byte 4"):
            texts(tmp_path / name, text_column="body")
        assert texts(tmp_path / name, text_column="body", errors="replace") == ["fine", "bad \ufffd", "café"]
    (tmp_path / "b.parquet").write_bytes(parquet({"body": pa.array([b"caf\xc3\xa9"])}))
    assert texts(tmp_path / "b.parquet", text_column="body") == ["café"]


# ---------------------------------------------------------------- folders


def test_hidden_files_are_not_read_and_what_is_left_out_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.txt", ".hidden.txt", ".ipynb_checkpoints/a-checkpoint.txt", "b.png", "c.png", "d.csv", "README"):
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    assert texts(tmp_path / "texts") == ["a.txt"]
    told = capsys.readouterr().err
    assert "reading 1 file(s), left out 6: 2 hidden, 2 .png, 1 without suffix, 1 .csv" in told


def test_links_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "b.txt").symlink_to(folder / "a.txt")
    assert texts(folder) == ["a", "a"]
    assert "1 linked folder" in capsys.readouterr().err
    (folder / "c.txt").symlink_to("gone.txt")
    (folder / "d.txt").symlink_to("d.txt")
    for given in (folder, folder / "c.txt", folder / "*.txt"):
        with pytest.raises(DataError, match=r"c\.txt: is a link to gone\.txt, where nothing is"):
            texts(given)
    with pytest.raises(DataError, match=r"d\.txt: "):
        texts(folder / "d.txt")


@pytest.mark.parametrize("name", ["x" * 300, "a\nb", "a\0b", "a.txt/b", "~nobody/a"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    for given in (f"{tmp_path}/{name}", name, ""):
        with pytest.raises(DataError):
            texts(given)


@pytest.mark.parametrize(
    "url",
    ["http://host/a b.txt", "http://host/a\nb", "http://[::1/x", "http://", "http://host:port/x", "http://a\x7fb/"],
)
def test_addresses_that_are_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="is no address") as raised:
        texts(url, cache=tmp_path)
    assert len(str(raised.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(GptlabError, match=r"GPTLAB_CACHE .*cache is no folder"):
        texts("http://127.0.0.1:1/a.txt", cache=tmp_path / "cache")


def test_small_members_of_an_archive_share_a_block_and_are_documents_of_their_own(tmp_path: Path) -> None:
    """A block for each of a million samples would be a message to a worker for each."""
    from gptlab.data.sources.archive import Archive
    from gptlab.data.sources.base import Reading

    contents = [f"sample {number} {'long ' * (400 if number % 7 == 3 else 2)}" for number in range(60)]
    members = {f"{number:03d}.txt": content.encode() for number, content in enumerate(contents)}
    members["060.jsonl"] = b'{"text": ""}\n{"text": "goes on"}\n'  # rows of another file never do
    (tmp_path / "a.tar").write_bytes(tar(members))
    for block_bytes, fewest, most in ((1 << 20, 1, 1), (500, 10, 60)):  # a long one is a block of its own
        archive = Archive(tmp_path / "a.tar", "a.tar", block_bytes)
        reading = Reading(document_start="sample")
        found = list(archive.blocks(0, reading, None))
        assert fewest <= len(found) <= most

        def documents(position: object, archive: Archive = archive, reading: Reading = reading) -> list[str]:
            """Whole documents, from a cursor on."""
            whole: list[str] = []
            for block in archive.blocks(0, reading, position):
                for document in block.documents(reading):
                    if document.continues and whole and not document.text.startswith("goes"):
                        whole[-1] += document.text
                    else:
                        whole.append(document.text)
            return whole

        expected = [*contents, "goes on"]
        assert documents(None) == expected
        for block in found:
            rest = documents(block.cursor[1])
            assert "".join(expected).endswith("".join(rest))
            assert rest[1:] == expected[len(expected) - len(rest) + 1 :]
