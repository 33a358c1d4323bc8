"""Sources: what inputs mean, and what is said when they mean nothing."""

from __future__ import annotations

import contextlib
import functools
import gzip
import http.server
import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data import iter_documents
from gptlab.data.preset import load_preset, preset_names
from gptlab.data.sources import Reading, read_blocks
from gptlab.data.sources.download import download
from gptlab.data.sources.kinds import open_file
from gptlab.data.sources.parquet import ParquetFile
from gptlab.data.sources.resolve import resolve
from gptlab.data.sources.text import TextFile, character_split
from gptlab.errors import DataError


def texts(*inputs: object, **options: object) -> list[str]:
    found: list[str] = []
    for document in iter_documents([str(name) for name in inputs], **options):  # type: ignore[arg-type]
        if document.continues:
            found[-1] += document.text
        else:
            found.append(document.text)
    return found


def test_globs_and_folders_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a/1.md", "c.txt.gz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(name.encode()) if name.endswith("gz") else name.encode())
    assert texts(tmp_path) == ["a/1.md", "b/2.txt", "c.txt.gz"]
    assert texts(tmp_path / "**" / "*.txt") == ["b/2.txt"]
    assert texts(tmp_path / "c.txt.gz", tmp_path / "b") == ["c.txt.gz", "b/2.txt"]


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=60, deadline=None)
@given(content=st.lists(st.sampled_from([" a", "b", "é日", "\n", " ", "🙂", "<sep>"]), max_size=300).map("".join))
def test_blocks_put_together_are_the_text(tmp_path_factory, content: str) -> None:
    path = tmp_path_factory.mktemp("text") / "in.txt"
    path.write_bytes(content.encode())
    for separator in (None, "<sep>"):
        reading = Reading(separator=separator)
        blocks = list(read_blocks([TextFile(path, "in", block_bytes=64)], reading))
        assert b"".join(block.data for block in blocks).decode() == content  # type: ignore[attr-defined]
        found: list[str] = []
        for block in blocks:
            for document in block.documents(reading):
                found = [*found[:-1], found[-1] + document.text] if document.continues else [*found, document.text]
        parts = [content] if separator is None else [part.strip("\r\n") for part in content.split(separator)]
        assert found == [part for part in parts if part]


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(text, min_size=1, max_size=50), size=st.integers(1, 400))
def test_reading_goes_on_from_any_cursor(tmp_path_factory, rows: list[str], size: int) -> None:
    folder = tmp_path_factory.mktemp("cursor")
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress((folder / "a.jsonl").read_bytes()))
    (folder / "c.txt").write_text("".join(rows), newline="")
    pq.write_table(pa.table({"text": rows}), folder / "d.parquet", row_group_size=7)
    files = [open_file(folder / name, name, size) for name in ("a.jsonl", "b.jsonl.gz", "c.txt")]
    sources = [*files, ParquetFile(folder / "d.parquet", "d")]
    blocks = list(read_blocks(sources, Reading()))
    for number, block in enumerate(blocks):
        cursor = json.loads(json.dumps(block.cursor))
        assert list(read_blocks(sources, Reading(), (cursor[0], cursor[1]))) == blocks[number:]


def test_huge_row_groups_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptlab.data.sources import parquet

    rows = [f"row {number}" for number in range(1000)]
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet", row_group_size=600)
    monkeypatch.setattr(parquet, "_ROW_GROUP_IN_WORKER", 10)
    assert texts(tmp_path / "a.parquet") == rows
    blocks = list(read_blocks(resolve([str(tmp_path / "a.parquet")]), Reading()))
    assert list(read_blocks(resolve([str(tmp_path / "a.parquet")]), Reading(), blocks[4].cursor)) == blocks[4:]


def test_nulls_and_empty_texts_are_no_documents(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None, "", "b"]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"text": null}\n\n{"text": "c"}\n{"text": ""}')
    assert texts(tmp_path) == ["a", "b", "c"]


def test_limit_bytes_keeps_a_long_text_short(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words " * 100_000)
    assert 20_000 <= len(texts(tmp_path / "a.txt", limit_bytes=20_000)[0]) < 60_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine \xff not", r"a\.txt: invalid UTF-8 at byte 5, .*errors='replace'"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', r"a\.jsonl: invalid UTF-8 at byte 24"),
        ("a.jsonl", b'{"text": "a"}\n{"body": 1}', r"a\.jsonl, line 2: no field 'text' \(it has: body\)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 1}', r"line 2: 'text' holds int"),
        ("a.jsonl", b'{"text": "a"}\nnonsense', r"line 2: is no JSON"),
        ("a.jsonl", b"[1]", r"line 1: no field 'text'"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"line 1: half a surrogate pair"),
        ("a.txt.gz", b"no gzip", r"a\.txt\.gz: is damaged"),
        ("a.txt.gz", gzip.compress(b"hello " * 1000, mtime=0)[:-9], r"a\.txt\.gz: is damaged"),
        ("a.txt.zst", b"no zstd at all", r"a\.txt\.zst: is damaged"),
        ("a.parquet", b"no parquet", r"a\.parquet: is damaged"),
        ("a.txt", b"", r"a\.txt: no text in it"),
        ("a.jsonl", b'{"text": ""}', r"a\.jsonl: no text in it"),
    ],
)
def test_damaged_input_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        texts(tmp_path / name)


def test_invalid_text_is_accepted_on_request(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine \xff not")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "x\\ud800y"}')
    assert texts(tmp_path, errors="replace") == ["fine \ufffd not", "x\ufffdy"]


def test_columns_are_checked(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"], "number": [1]}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet", text_column="body") == ["a"]
    with pytest.raises(DataError, match=r"no column 'text' \(it has: body, number\)"):
        texts(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="holds int, not text"):
        texts(tmp_path / "a.parquet", text_column="number")


def test_missing_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for given_input, message in (
        (tmp_path / "none.txt", "no such file or folder"),
        (tmp_path / "*.txt", "no file matches"),
        (tmp_path / "empty", "no .parquet"),
        ("ftp://host/file", "no kind of input"),
        ("hf://", "no dataset name"),
        ("stdlib:test", "stdlib:train or stdlib:validation"),
    ):
        with pytest.raises(DataError, match=message):
            texts(given_input)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.txt").write_text("from afar")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_urls_are_downloaded_once(server: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert texts(f"{server}/a.txt", cache=cache) == ["from afar"]
    (tmp_path / "served" / "a.txt").unlink()
    assert texts(f"{server}/a.txt", cache=cache) == ["from afar"]
    with pytest.raises(DataError, match=r"b\.txt: cannot be downloaded .*inputs"):
        download(f"{server}/b.txt", cache)
    with pytest.raises(DataError, match="cannot be downloaded"):
        download("http://127.0.0.1:1/a.txt", cache)
    assert len(list(cache.iterdir())) == 1


def test_the_standard_library_gives_megabytes_and_a_tenth_for_validation() -> None:
    train, validation = resolve(["stdlib:train"]), resolve(["stdlib:validation"])
    sizes = [sum(source.size(Reading()) or 0 for source in part) for part in (train, validation)]
    assert sizes[0] > 4_000_000
    assert 0.03 < sizes[1] / sum(sizes) < 0.25
    names = [source.name for source in (*train, *validation)]
    assert len(set(names)) == len(names)
    assert not [name for name in names if "site-packages" in name or "/test/" in name]


def test_every_preset_is_whole() -> None:
    wanted = "stdlib shakespeare shakespeare-char tinystories-v2 openwebtext wikitext-103 fineweb-10B fineweb-100B"
    assert {*wanted.split(), "fineweb-edu-10B", "fineweb-edu-100B", "txt360"} <= set(preset_names())
    for name in preset_names():
        assert load_preset(name).inputs
    with pytest.raises(DataError, match="did you mean 'shakespeare'"):
        load_preset("shakespear")


def test_the_character_split_is_for_plain_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    assert character_split(open_file(tmp_path / "a.jsonl", "a", 100), 0.1) is None


def test_a_kind_of_source_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/extending/data-source.md, put beside the kinds that ship, is one."""
    import gptlab.data.sources

    page = (Path(__file__).parents[2] / "docs/extending/data-source.md").read_text(encoding="utf-8")
    diff = page.partition("+++ b/src/gptlab/data/sources/sqlite.py\n")[2].partition("\n```")[0]
    code = "\n".join(line.removeprefix("+") for line in diff.splitlines())
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds/sqlite.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(gptlab.data.sources, "__path__", [*gptlab.data.sources.__path__, str(tmp_path / "kinds")])
    rows = [f"text number {number}, é" for number in range(2500)]
    with contextlib.closing(sqlite3.connect(tmp_path / "a.sqlite")) as database, database:
        database.execute("CREATE TABLE documents (text TEXT)")
        database.executemany("INSERT INTO documents VALUES (?)", [(row,) for row in rows])
    assert texts(tmp_path / "a.sqlite") == rows
    assert texts(tmp_path) == rows  # found in a folder by its suffix
    sources = resolve([str(tmp_path / "a.sqlite")])
    second = list(read_blocks(sources, Reading()))[1]
    again = next(iter(read_blocks(sources, Reading(), second.cursor)))
    assert list(again.documents(Reading())) == list(second.documents(Reading()))
    with pytest.raises(DataError, match="needs a table `documents`"):
        texts(tmp_path / "a.sqlite", text_column="no such")
