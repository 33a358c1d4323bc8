"""Preparing: what is written, and that neither workers nor kills change a byte of it."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from gptlab.data import Reading, TokenDataset, iter_documents, prepare, verify
from gptlab.errors import BusyError, DataError
from gptlab.tokenizer import load_tokenizer

EOT = 256  # of the byte tokenizer


def documents(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    words = ["alpha", "bêta", "γάμμα", "delta", "日本", "one", "two", "\n"]
    return [" ".join(random.choice(words, random.integers(1, 60))) for _ in range(count)]


def expected(texts: list[str]) -> list[int]:
    return [token for text in texts for token in [EOT, *text.encode()]]


def tokens_of(folder: Path, split: str = "train") -> list[int]:
    data = TokenDataset.open(folder, split)  # type: ignore[arg-type]
    return [int(token) for token in data.read(0, data.tokens)]


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, list[str]]:
    """The same texts could come in any form; here in all of them, in the order of their names."""
    texts, folder = documents(400), tmp_path / "corpus"
    folder.mkdir()
    lines = ["\n".join(json.dumps({"text": text, "id": 1}) for text in texts[i : i + 100]) for i in (0, 100, 200)]
    (folder / "a.jsonl").write_text(lines[0] + "\n\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines[1].encode()))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(lines[2].encode()))
    pq.write_table(pa.table({"text": texts[300:399], "id": range(99)}), folder / "d.parquet", row_group_size=10)
    (folder / "e.txt").write_text(texts[399])
    (tmp_path / "other.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents(100, 5)))
    (folder / "ignored.png").write_bytes(b"\x89PNG")
    return folder, texts


def test_every_format_gives_separator_and_ids_in_order(corpus, tmp_path: Path) -> None:
    folder, texts = corpus
    manifest = prepare([str(folder)], tmp_path / "out", tokenizer="byte", shard_size=5000, workers=1)
    assert tokens_of(tmp_path / "out") == expected(texts)
    split = manifest.splits["train"]
    assert (split.documents, split.bytes) == (400, sum(len(text.encode()) for text in texts))
    assert [shard.tokens for shard in split.shards[:-1]] == [5000] * (len(split.shards) - 1)
    assert len(split.shards) > 5
    verify(tmp_path / "out")


def test_a_shard_is_llm_c_s_layout_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hi")
    prepare([str(tmp_path / "a.txt")], tmp_path / "out", tokenizer="byte", workers=1)
    content = (tmp_path / "out" / "train_000001.bin").read_bytes()
    header = np.frombuffer(content[:1024], dtype="<i4")
    assert header[:3].tolist() == [20240520, 1, 3]
    assert not header[3:].any()
    assert np.frombuffer(content[1024:], dtype="<u2").tolist() == [EOT, ord("h"), ord("i")]
    described = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert described["format_version"] == 1
    assert described["end_of_text"] == EOT
    assert described["tokenizer"]["hash"] == load_tokenizer(tmp_path / "out" / "tokenizer").hash
    assert described["splits"]["train"]["shards"][0]["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"validation_fraction": 0.2},
        {"validation_tokens": 3000},
        {"num_shards": 3},
        {"limit_bytes": 20_000},
        {"num_shards": 2, "validation_tokens": 7000},
    ],
)
def test_the_number_of_workers_changes_nothing(corpus, tmp_path: Path, options: dict) -> None:
    for workers in (1, 3):
        out = tmp_path / f"out{workers}"
        prepare([str(corpus[0])], out, tokenizer="byte", shard_size=4000, workers=workers, **options)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out3")


def test_the_last_documents_are_for_validation(corpus, tmp_path: Path) -> None:
    folder, texts = corpus
    prepare([str(folder)], tmp_path / "out", tokenizer="byte", validation_fraction=0.1, workers=1)
    assert tokens_of(tmp_path / "out") == expected(texts[:360])
    assert tokens_of(tmp_path / "out", "validation") == expected(texts[360:])


def test_the_first_tokens_are_for_validation(corpus, tmp_path: Path) -> None:
    folder, texts = corpus
    prepare([str(folder)], tmp_path / "out", tokenizer="byte", validation_tokens=3000, shard_size=1000, workers=1)
    sizes = np.cumsum([1 + len(text.encode()) for text in texts])
    count = int((sizes <= 3000).sum())
    assert tokens_of(tmp_path / "out", "validation") == expected(texts[:count])
    assert tokens_of(tmp_path / "out") == expected(texts[count:])


def test_validation_files_of_their_own(corpus, tmp_path: Path) -> None:
    folder, texts = corpus
    prepare(
        [str(folder / "a.jsonl")],
        tmp_path / "out",
        tokenizer="byte",
        validation=[str(folder / "*.zst")],
        workers=1,
    )
    assert tokens_of(tmp_path / "out") == expected(texts[:100])
    assert tokens_of(tmp_path / "out", "validation") == expected(texts[200:300])


def test_num_shards_stops_at_a_document(corpus, tmp_path: Path) -> None:
    folder, texts = corpus
    manifest = prepare([str(folder)], tmp_path / "out", tokenizer="byte", shard_size=3000, num_shards=2, workers=1)
    sizes = np.cumsum([1 + len(text.encode()) for text in texts])
    count = int((sizes <= 6000).sum())
    assert tokens_of(tmp_path / "out") == expected(texts[:count])
    assert len(manifest.splits["train"].shards) == 2
    verify(tmp_path / "out")


def test_limit_bytes_stops_at_the_document_that_reaches_it(corpus, tmp_path: Path) -> None:
    folder, texts = corpus
    prepare([str(folder)], tmp_path / "out", tokenizer="byte", limit_bytes=9000, workers=1)
    count = int((np.cumsum([len(text.encode()) for text in texts]) < 9000).sum()) + 1
    assert tokens_of(tmp_path / "out") == expected(texts[:count])


def test_a_single_text_is_split_by_characters_in_order(test_data: Path, tmp_path: Path) -> None:
    text = (test_data / "tinyshakespeare" / "input.txt").read_text() + "é日" * 1000
    (tmp_path / "in.txt").write_text(text)
    prepare([str(tmp_path / "in.txt")], tmp_path / "out", tokenizer="byte", validation_fraction=0.1, workers=1)
    cut = int(len(text) * 0.9)
    assert tokens_of(tmp_path / "out") == expected([text[:cut]])
    assert tokens_of(tmp_path / "out", "validation") == expected([text[cut:]])


def test_pieces_of_a_long_text_are_tokenized_as_the_whole(test_data: Path, tmp_path: Path) -> None:
    from gptlab.tokenizer import import_tokenizer

    tokenizer = import_tokenizer(str(test_data / "gpt2_bpe"), name="gpt2")
    rows = pq.read_table(test_data / "gutenberg" / "validation-00000-of-00001.parquet")["text"].to_pylist()
    text = "\n".join(rows)
    assert len(text) > 3 << 20
    (tmp_path / "in.txt").write_text(text, newline="")
    manifest = prepare([str(tmp_path / "in.txt")], tmp_path / "out", tokenizer=tokenizer, workers=1)
    assert tokens_of(tmp_path / "out") == [tokenizer.end_of_text, *tokenizer.encode(text)]
    assert (manifest.splits["train"].documents, manifest.splits["train"].bytes) == (1, len(text.encode()))


def test_large_vocabularies_are_written_as_uint32(tmp_path: Path) -> None:
    from gptlab.tokenizer import char_tokenizer

    characters = [chr(code) for code in range(0x20, 0xD7FF)] + [chr(code) for code in range(0x10000, 0x14000)]
    tokenizer = char_tokenizer(characters, name="wide")
    assert tokenizer.vocab_size > 1 << 16
    (tmp_path / "a.txt").write_text("a" + chr(0x13FFF))
    prepare([str(tmp_path / "a.txt")], tmp_path / "out", tokenizer=tokenizer, workers=1)
    header = np.frombuffer((tmp_path / "out" / "train_000001.bin").read_bytes()[:12], dtype="<i4")
    assert header.tolist() == [20240801, 7, 3]
    assert tokens_of(tmp_path / "out") == [tokenizer.end_of_text, *tokenizer.encode("a" + chr(0x13FFF))]


def partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills a process group")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_without_repeating_shards(tmp_path: Path, workers: int) -> None:
    source = tmp_path / "big.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in documents(200, 1) * 100))
    options = {"tokenizer": "byte", "shard_size": 50_000, "validation_fraction": 0.3}
    prepare([str(source)], tmp_path / "whole", workers=1, **options)
    command = ["data", "prepare", "--input", str(source), "--out", str(tmp_path / "out"), "--tokenizer", "byte"]
    command += ["--shard-size", "50K", "--validation-fraction", "0.3", "--workers", str(workers)]
    main = [sys.executable, "-c", "from gptlab.cli import main; main()", *command]
    kills, finished = 0, {}
    for shards in (2, 12, 40):
        process = subprocess.Popen(main, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(partial(tmp_path / "out").glob("*.bin"))) < shards:
            time.sleep(0.001)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        for name, inode in finished.items():
            assert (partial(tmp_path / "out") / name).stat().st_ino == inode, f"{name} was written again"
        journal = json.loads((partial(tmp_path / "out") / "journal.json").read_text())
        names = [shard["file"] for entry in journal["splits"].values() for shard in entry["shards"]]
        assert len(names) >= shards - 1
        finished = {name: (partial(tmp_path / "out") / name).stat().st_ino for name in names}
    assert kills == 3
    assert not (tmp_path / "out").exists()
    prepare([str(source)], tmp_path / "out", workers=3 - workers, **options)
    for name, inode in finished.items():
        assert (tmp_path / "out" / name).stat().st_ino == inode
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not partial(tmp_path / "out").exists()


def fail_after(monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    """Stop with an error just after so many shards were journaled."""
    from gptlab.data.preparation.writer import DatasetWriter

    close, closed = DatasetWriter._close_shard, []

    def closing(job: DatasetWriter) -> None:
        close(job)
        closed.append(job)
        if len(closed) == shards:
            raise KeyboardInterrupt

    monkeypatch.setattr(DatasetWriter, "_close_shard", closing)


@pytest.mark.parametrize(
    "options",
    [
        {"validation_fraction": 0.2},
        {"validation_tokens": 9500},
        {"num_shards": 3},
        {"num_shards": 2, "validation_tokens": 10_500},
        {"limit_bytes": 20_000, "validation": ["other.jsonl"]},
        {"validation": ["other.jsonl"]},
    ],
)
def test_it_goes_on_from_any_shard(corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"tokenizer": "byte", "shard_size": 4500, "workers": 1, **options}
    prepare(["corpus"], "whole", **given)
    whole = contents(Path("whole"))
    for stop in range(1, len([name for name in whole if name.endswith(".bin")]) + 1):
        with monkeypatch.context() as patch:
            fail_after(patch, stop)
            with pytest.raises(KeyboardInterrupt):
                prepare(["corpus"], "out", **given)
        prepare(["corpus"], "out", **given)
        assert contents(Path("out")) == whole, f"stopped after shard {stop}"
        for path in Path("out").rglob("*"):
            if path.is_file():
                path.unlink()
        for name in ("out/tokenizer", "out"):
            Path(name).rmdir()


def test_other_options_start_over(corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    folder, texts = corpus
    with monkeypatch.context() as patch:
        fail_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            prepare([str(folder)], tmp_path / "out", tokenizer="byte", shard_size=1500, workers=1)
    prepare([str(folder)], tmp_path / "out", tokenizer="byte", shard_size=1600, workers=1)
    assert "starting over" in capsys.readouterr().err
    assert tokens_of(tmp_path / "out") == expected(texts)


def test_two_at_once_are_refused(corpus, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with open(tmp_path / ".out.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="another process"):
            prepare([str(corpus[0])], tmp_path / "out", tokenizer="byte", workers=1)
    assert not partial(tmp_path / "out").exists()


def test_what_another_process_finished_meanwhile_is_not_replaced(
    corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs at once, the other of which ends between this one's first look at its target and its first shard."""
    from gptlab.data import preparation

    plan, given = preparation.plan_passes, {"tokenizer": "byte", "workers": 1}

    def slow(*arguments):
        monkeypatch.setattr(preparation, "plan_passes", plan)
        prepare([str(corpus[0] / "a.jsonl")], tmp_path / "sets" / "out", **given)
        return plan(*arguments)

    monkeypatch.setattr(preparation, "plan_passes", slow)
    with pytest.raises(DataError, match="exists already"):
        prepare([str(corpus[0] / "e.txt")], tmp_path / "sets" / "out", **given)
    assert tokens_of(tmp_path / "sets" / "out") == expected(corpus[1][:100])
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["out"]


def test_a_refusal_leaves_nothing_behind(tmp_path: Path) -> None:
    """No lock, no folder that was made on the way; a lock that a killed process left is no obstacle."""
    (tmp_path / "in.txt").write_text("")
    with pytest.raises(DataError, match="no text"):
        prepare([str(tmp_path / "in.txt")], tmp_path / "a" / "b" / "out", tokenizer="byte", workers=1)
    (tmp_path / ".out.lock").write_text("")
    with pytest.raises(DataError, match="no text"):
        prepare([str(tmp_path / "in.txt")], tmp_path / "out", tokenizer="byte", workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_separators_cut_text_files_into_documents(tmp_path: Path) -> None:
    stories = [f"Story {n}.\nIt ends." for n in range(3000)]
    (tmp_path / "in.txt").write_text("\n<|endoftext|>\n".join(stories) + "\n<|endoftext|>\n")
    reading = Reading(separator="<|endoftext|>")
    for limit in (None, 3000):  # in one block, and cut into many
        options = {"limit_bytes": limit, "force": True, "workers": 1}
        prepare([str(tmp_path / "in.txt")], tmp_path / "out", tokenizer="byte", reading=reading, **options)
        tokens = tokens_of(tmp_path / "out")
        assert tokens == expected(stories)[: len(tokens)]
        assert (limit is not None) or len(tokens) == len(expected(stories))


def test_rows_are_joined_where_no_document_starts(tmp_path: Path) -> None:
    rows = [f" = Title {n} = \n" if n % 7 == 0 else f" line {n} \n" for n in range(700)]
    pq.write_table(pa.table({"text": rows}), tmp_path / "in.parquet", row_group_size=50)
    articles = ["".join(rows[n : n + 7]) for n in range(0, 700, 7)]
    reading = Reading(document_start=" = [^=].* = \n$")
    prepare([str(tmp_path / "in.parquet")], tmp_path / "out", tokenizer="byte", reading=reading, workers=1)
    assert tokens_of(tmp_path / "out") == expected(articles)


EMPTY_FIRST = {
    "a.parquet": ["one\n", "  more\n", "= two\n"],
    "b.parquet": ["", "", "three\n", "  more\n", "= four\n"],
    "c.jsonl": ["", None, "five\n", "= six\n"],
}


@pytest.mark.parametrize("names", [["b.parquet", "a.parquet", "c.jsonl"], ["a.parquet", "b.parquet", "c.jsonl"]])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_begins_a_document_though_its_first_rows_are_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], workers: int
) -> None:
    """With --document-start: neither are two files' documents glued, nor does the first lack its separator."""
    for name in names:
        if name.endswith("parquet"):
            pq.write_table(pa.table({"text": EMPTY_FIRST[name]}), tmp_path / name, row_group_size=2)
        else:
            lines = [json.dumps({"text": row}) for row in EMPTY_FIRST[name]]
            (tmp_path / name).write_text("\n".join(["", *lines]))
    articles = {"a.parquet": ["one\n  more\n", "= two\n"], "b.parquet": ["three\n  more\n", "= four\n"]}
    articles["c.jsonl"] = ["five\n", "= six\n"]
    inputs = [str(tmp_path / name) for name in names]
    given = {"tokenizer": "byte", "reading": Reading(document_start="= "), "workers": workers}
    prepare(inputs, tmp_path / "out", **given)
    wanted = [article for name in names for article in articles[name]]
    assert tokens_of(tmp_path / "out") == expected(wanted)
    found = list(iter_documents(inputs, document_start="= "))
    assert sum(not document.continues for document in found) == len(wanted)
    prepare(inputs, tmp_path / "split", validation_fraction=0.3, **given)
    assert tokens_of(tmp_path / "split", "validation") == expected(wanted[4:])


def test_a_huggingface_dataset_is_streamed_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    from gptlab.data.sources import hub

    texts, folder = documents(300), tmp_path / "hub"
    folder.mkdir()
    for number, part in enumerate((texts[:120], texts[120:])):
        pq.write_table(pa.table({"text": part}), folder / f"train-{number:05d}.parquet", row_group_size=40)
    monkeypatch.setattr(hub, "BLOCK_BYTES", 2000)
    given = {"tokenizer": "byte", "shard_size": 3000, "validation_tokens": 2000, "workers": 1}
    with monkeypatch.context() as patch:
        fail_after(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            prepare([f"hf://{folder}@train"], tmp_path / "out", **given)
    prepare([f"hf://{folder}@train"], tmp_path / "out", **given)
    assert tokens_of(tmp_path / "out", "validation") + tokens_of(tmp_path / "out") == expected(texts)


def test_it_says_how_far_it_is_where_there_is_no_terminal(
    corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gptlab import console

    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    (tmp_path / "in.txt").write_text("\n".join(corpus[1]) * 50)
    prepare([str(tmp_path / "in.txt")], tmp_path / "out", tokenizer="byte", workers=1)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tokenizing: ")]
    assert re.fullmatch(r"tokenizing: \d.* of \d\.\d MB \(\d+%\), \d+ s", told[0])
    assert "(100%)" in told[-1]
    prepare([str(corpus[0] / "b.jsonl.gz")], tmp_path / "other", tokenizer="byte", workers=1)
    assert re.search(r"^tokenizing: \d+\.\d kB, \d+ s$", capsys.readouterr().err, re.M)


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """A shell that starts the tests in the background has interrupts ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
def test_an_interrupt_while_a_worker_starts_comes_later_and_not_to_the_worker() -> None:
    from gptlab.processes import interrupts_later

    blocked = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    reached = []

    @interrupts_later()
    def start() -> None:
        signal.raise_signal(signal.SIGINT)
        reached.append(subprocess.check_output([sys.executable, "-c", blocked], text=True))

    with pytest.raises(KeyboardInterrupt):
        start()
    assert reached == ["True\n"]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.skipif(not Path(f"/proc/{os.getpid()}/task").is_dir(), reason="looks for workers in /proc")
@pytest.mark.usefixtures("heeds_interrupts")
def test_ctrl_c_while_workers_start(tmp_path: Path) -> None:
    """It goes to the whole group of processes, as from a keyboard."""
    (tmp_path / "in.txt").write_text("some words and more of them\n" * 400_000)
    command = ["data", "prepare", "--input", "in.txt", "--tokenizer", "byte", "--out", "o", "--workers", "4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gptlab", *command],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def in_the_middle() -> bool:
        """Whether a worker has begun its imports."""
        with contextlib.suppress(OSError):
            return any("numpy" in Path(f"/proc/{child}/maps").read_text() for child in children.read_text().split())
        return False

    while process.poll() is None and not in_the_middle():
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in told
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]
