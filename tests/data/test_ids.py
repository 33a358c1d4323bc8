"""Data sets that were tokenized elsewhere: rows of ids, packed rows, shards, arrays, and files of the hub."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptlab.data import Input, Reading, TokenDataset, prepare, verify
from gptlab.errors import DataError
from gptlab.tokenizer import Tokenizer, train_bpe

TEXTS = [f"story {n}: the cat sat on the mat, and then {'it slept ' * (n % 7)}until day {n * n}." for n in range(90)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, [400], name="own", special_tokens=["<|u|>"])[0]


def llm_c_bytes(ids: list[int]) -> bytes:
    """A shard as llm.c and modded-nanogpt write it."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(ids)
    return header.tobytes() + np.asarray(ids, dtype="<u2").tobytes()


def stream_of(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    return [token for text in texts for token in (tokenizer.end_of_text, *tokenizer.encode(text))]


def written(folder: Path, kind: str, rows: list[list[int]]) -> Path:
    path = folder / f"in.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"tokens": row}) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.table({"tokens": pa.array(rows, pa.list_(pa.int32()))}), path, row_group_size=20)
    elif kind == "arrow":
        table = pa.table({"tokens": pa.array(rows, pa.large_list(pa.uint16()))})
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table, max_chunksize=17)
    return path


def made(out: Path, inputs: list[Any], tokenizer: Tokenizer | str, ids: Any = "documents", **options: Any) -> list[int]:
    reading = Reading(text_column="tokens", ids=ids)
    prepare(inputs, out, tokenizer=tokenizer, reading=reading, **{"workers": 1, **options})
    verify(out)
    data = TokenDataset.open(out, "train")
    return [int(token) for token in data.read(0, data.tokens)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
@pytest.mark.parametrize("separator", ["first", "last", "none"])
def test_rows_of_ids_are_the_documents_of_their_text(
    tmp_path: Path, tokenizer: Tokenizer, kind: str, separator: str, capsys: pytest.CaptureFixture[str]
) -> None:
    end = [tokenizer.end_of_text]
    rows = [tokenizer.encode(text) for text in TEXTS]
    with_ends = [(end if separator == "first" else []) + row + (end if separator == "last" else []) for row in rows]
    path = written(tmp_path, kind, [[], *with_ends])
    assert made(tmp_path / "out", [str(path)], tokenizer) == stream_of(tokenizer, TEXTS)
    said = "64 of 64 sampled documents (100%) are the ids that tokenizer 'own' gives their text"
    assert said in capsys.readouterr().err
    (tmp_path / "in.txt").write_text("|".join(TEXTS))
    from_text = prepare([str(tmp_path / "in.txt")], tmp_path / "t", tokenizer=tokenizer, reading=Reading(separator="|"))
    from_ids = json.loads((tmp_path / "out/dataset.json").read_text())
    assert from_ids["options"]["ids"] == "documents"
    assert from_ids["splits"]["train"] == json.loads((tmp_path / "t/dataset.json").read_text())["splits"]["train"]
    assert from_text.splits["train"].bytes == sum(map(len, TEXTS))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("workers", [1, 2])
def test_packed_rows_are_one_run_of_ids(tmp_path: Path, tokenizer: Tokenizer, kind: str, workers: int) -> None:
    run = stream_of(tokenizer, TEXTS)
    path = written(tmp_path, kind, [run[start : start + 128] for start in range(0, len(run), 128)])
    assert made(tmp_path / "out", [str(path)], tokenizer, "packed", workers=workers) == run
    with pytest.raises(DataError, match=r"a row holds the separator <\|endoftext\|> \(398\) inside; .* ids='packed'"):
        made(tmp_path / "rows", [str(path)], tokenizer)


@pytest.mark.parametrize("kind", ["bin", "headerless.bin", "npy"])
def test_files_of_ids_are_one_run_of_them(
    tmp_path: Path, tokenizer: Tokenizer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document goes on from one file into the next, and no separator comes between; blocks end where they will."""
    monkeypatch.setattr("gptlab.data.sources.token_files._IDS", 777)
    run = stream_of(tokenizer, TEXTS)
    paths = [tmp_path / f"part_{number}.{kind}" for number in range(3)]
    third = len(run) // 3
    for number, path in enumerate(paths):
        ids = np.array(run[number * third : (number + 1) * third if number < 2 else None], dtype=np.uint16)
        if kind == "npy":
            np.save(path, ids.astype(np.int64))
        else:
            path.write_bytes(ids.tobytes() if "headerless" in kind else llm_c_bytes(ids.tolist()))
    inputs: list[Any] = [str(tmp_path / f"part_*.{kind}")]
    assert made(tmp_path / "out", inputs, tokenizer, None, shard_size=1000) == run
    assert TokenDataset.open(tmp_path / "out", "train").documents == len(TEXTS)
    first = made(tmp_path / "held", inputs, tokenizer, None, validation_tokens=300)
    held = TokenDataset.open(tmp_path / "held", "validation")
    assert [*held.read(0, held.tokens).tolist(), *first] == run


def test_another_tokenizer_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (other,) = train_bpe([text[::-1] for text in TEXTS], [440], name="other")
    path = written(tmp_path, "jsonl", [tokenizer.encode(text) for text in TEXTS])
    with pytest.raises(
        DataError, match=r"only \d+ of 64 sampled documents .* ids that tokenizer 'other' gives"
    ) as told:
        made(tmp_path / "o", [str(path)], other)
    assert "name the one that made them with tokenizer" in str(told.value)
    with pytest.raises(DataError, match=r"holds id \d+, and the ids of tokenizer 'byte' are 0\.\.256; name the one"):
        made(tmp_path / "o", [str(path)], "byte")
    run = stream_of(tokenizer, TEXTS)
    np.save(tmp_path / "x.npy", np.array(run * 3))
    with pytest.raises(DataError, match=r"only .* sampled documents"):
        made(tmp_path / "o", [str(tmp_path / "x.npy")], other, None)
    assert not (tmp_path / "o").exists()


def test_a_cut_out_of_a_run_is_held_against_the_tokenizer_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a whole document in sight: tokens have to end where they do, but for the edges."""
    text = "été, 中文中文; ".join(TEXTS)
    (mine,) = train_bpe([text], [330], name="mine")
    np.save(tmp_path / "x.npy", np.array(mine.encode(text)[5:]))
    made(tmp_path / "out", [str(tmp_path / "x.npy")], mine, None)
    assert "1 of 1 sampled documents" in capsys.readouterr().err
    with pytest.raises(DataError, match="only 0 of 1"):
        made(tmp_path / "o", [str(tmp_path / "x.npy")], train_bpe([text[::-1]], [330], name="other")[0], None)


def test_every_block_is_checked_against_the_vocabulary(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [tokenizer.encode(text) for text in TEXTS] * 30
    rows[-1] = [5, 400, 6]
    path = written(tmp_path, "jsonl", rows)
    with pytest.raises(DataError, match=r"in\.jsonl: holds id 400, and the ids of tokenizer 'own' are 0\.\.399"):
        made(tmp_path / "o", [str(path)], tokenizer)
    rows[-1] = [5, -1]
    with pytest.raises(DataError, match="holds id -1"):
        made(tmp_path / "o", [str(written(tmp_path, "jsonl", rows))], tokenizer)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"tokens": "text"}', "'tokens' holds no list of token ids; name another column with text_column"),
        ('{"tokens": [1.5]}', "holds no list of token ids"),
        ('{"tokens": [[1], [2, 3]]}', "holds no list of token ids"),
        ('{"tokens": [1e30]}', "holds no list of token ids"),
        ('{"other": [1]}', "no field 'tokens'"),
    ],
)
def test_what_is_no_ids(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "in.jsonl").write_text(row)
    with pytest.raises(DataError, match=message):
        made(tmp_path / "o", [str(tmp_path / "in.jsonl")], "byte")


def test_options_that_look_at_text_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array(list(b"words " * 40)))
    path = str(tmp_path / "x.npy")
    for options, message in (
        ({"limit_bytes": 100}, "limit_bytes: counts text, .*; use num_shards"),
        ({"validation_fraction": 0.1}, "documents of packed ids are not counted beforehand.*use validation_tokens"),
    ):
        with pytest.raises(DataError, match=message):
            made(tmp_path / "o", [path], "byte", None, **options)
    for chosen in (Input(path, without=("x",)), Input(path, max_bytes=9), Input(path, weight=0.5)):
        with pytest.raises(DataError, match="filters and caps look at text, and it holds ids"):
            made(tmp_path / "o", [chosen], "byte", None)
    (tmp_path / "words.txt").write_text("words")
    with pytest.raises(DataError, match=r"words\.txt: is text without a column of ids; leave it out"):
        made(tmp_path / "o", [str(tmp_path / "words.txt")], "byte")
    assert made(tmp_path / "o", [path, str(tmp_path / "words.txt")], "byte", None) == [
        256,
        *b"words " * 40,
        256,
        *b"words",
    ]
    with pytest.raises(DataError, match="are for text"):
        Reading(ids="packed", separator="x")


def test_the_command(gptlab: Any, refused: Callable[..., str], tmp_path: Path) -> None:
    rows = [list(text.encode()) for text in TEXTS]
    written(tmp_path, "parquet", rows)
    command = ("data", "prepare", "--input", "in.parquet", "--tokenizer", "byte", "--workers", "1", "--out")
    done = gptlab(*command, "out", "--ids-column", "tokens", "--validation-fraction", "0.1")
    assert done.returncode == 0, done.stderr
    assert "train: 81 documents" in done.stdout
    assert "token ids with --ids-column" in refused(*command, "o", "--text-column", "tokens")
    assert "no column 'token' (it has: tokens); name the column with --ids-column" in refused(
        *command, "o", "--ids-column", "token"
    )
    assert "give that too" in refused(*command, "o", "--ids-rows", "packed")
    assert "neither documents nor packed" in refused(*command, "o", "--ids-column", "tokens", "--ids-rows", "x")
    np.save(tmp_path / "x.npy", np.arange(200))
    train = ("tokenizer", "train", "--input", "x.npy", "--vocab-size", "300", "--name", "t")
    assert "x.npy: holds token ids, no text" in refused(*train)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a client needs that lists a data set and fetches its files."""

    files: dict[str, bytes]
    asked: list[str]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        listing = {"id": "kjj0/fineweb10B-gpt2", "sha": "a" * 40, "siblings": [{"rfilename": n} for n in self.files]}
        body = json.dumps(listing).encode() if "/api/" in self.path else self.files.get(name, b"")
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{name}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if self.command == "GET":
            self.asked.append(name)
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hub() -> Iterator[Any]:
    Hub.files, Hub.asked = {}, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_shards_of_the_hub_by_the_preset(tmp_path: Path, test_data: Path, hub: Any) -> None:
    """The real client, against a server here: shards are fetched when it is their turn, and no more of them."""
    pytest.importorskip("huggingface_hub")
    from gptlab.tokenizer import import_tokenizer

    gpt2 = import_tokenizer(str(test_data / "gpt2_bpe"), name="gpt2")
    gpt2.save(tmp_path / "tokenizers/gpt2")
    text = (test_data / "tinyshakespeare/input.txt").read_text()
    texts = [text[start : start + 700] for start in range(0, 400_000, 700)]
    run = stream_of(gpt2, texts)
    for number in range(1, 13):
        part = run[(number - 1) * 8_000 : number * 8_000]
        Hub.files[f"fineweb_train_{number:06d}.bin"] = llm_c_bytes(part)
    Hub.files["fineweb_val_000000.bin"] = llm_c_bytes(stream_of(gpt2, [text[500_000:502_000]]))
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "no_proxy": "127.0.0.1",
    }
    command = [sys.executable, "-m", "gptlab", "data", "prepare", "fineweb10B-gpt2", "--workers", "1"]
    given: dict[str, Any] = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([*command, "--shard-size", "10K", "--num-shards", "1"], **given)
    assert done.returncode == 0, done.stderr
    data = TokenDataset.open(tmp_path / "data/fineweb10B-gpt2", "train")
    assert data.read(0, data.tokens).tolist() == run[: data.tokens]
    assert 9_000 < data.tokens <= 10_000
    assert "(100%) are the ids that tokenizer 'gpt2' gives their text" in done.stderr
    assert "fineweb_train_000010.bin" not in Hub.asked  # no more than is on its way
    none = [*command[:5], "--input", "hf://kjj0/fineweb10B-gpt2/web_*.bin", "--tokenizer", "gpt2", "--out", "o"]
    told = subprocess.run(none, **given)
    assert told.returncode == 2
    assert "hf://kjj0/fineweb10B-gpt2/web_*.bin: no such file in kjj0/fineweb10B-gpt2 (it has: fineweb_" in told.stderr
