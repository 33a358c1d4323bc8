"""`gptlab data …` as a user types it: results, and one line with exit code 2 for every mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import plain_json

from gptlab.data import prepare


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A data set of several shards."""
    lines = [json.dumps({"text": f"document number {number}"}) for number in range(300)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    options = {"tokenizer": "byte", "validation_fraction": 0.1, "shard_size": 1500, "workers": 1}
    prepare([str(tmp_path / "in.jsonl")], tmp_path / "made", **options)  # type: ignore[arg-type]
    return tmp_path / "made"


def test_books_in_books_out(gptlab, test_data: Path, tmp_path: Path) -> None:
    books = test_data / "gutenberg"
    command = ["data", "prepare", "--input", f"{books}/validation-*.parquet", "--tokenizer", "byte", "--out", "books"]
    done = gptlab(*command, "--validation-fraction", "0.1", "--shard-size", "1M", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "MB/s" in done.stderr
    assert "validation: 65 documents" in done.stdout
    shown = gptlab("data", "info", "books")
    assert shown.returncode == 0, shown.stderr
    assert "584" in shown.stdout
    assert "<|endoftext|>" in shown.stdout
    checked = gptlab("data", "verify", "books")
    assert checked.returncode == 0, checked.stderr
    assert "checksums, ids and documents agree" in checked.stdout


def test_shakespeare_by_characters_is_nanogpt_s_split(gptlab, test_data: Path, tmp_path: Path) -> None:
    source = test_data / "tinyshakespeare" / "input.txt"
    done = gptlab("data", "prepare", "shakespeare-char", "--input", source)
    assert done.returncode == 0, done.stderr
    described = json.loads((tmp_path / "data" / "shakespeare-char" / "dataset.json").read_text())
    assert described["vocab_size"] == 66
    assert {name: split["bytes"] for name, split in described["splits"].items()} == {
        "train": 1003854,
        "validation": 111540,
    }


def test_presets_are_listed(gptlab) -> None:
    shown = gptlab("data", "presets")
    assert shown.returncode == 0
    assert "fineweb-edu-10B" in shown.stdout


def test_numbers_fit_into_a_narrow_terminal(gptlab, made: Path) -> None:
    """A data set of trillions of tokens, as far as its description says, in 60 columns: no number is cut."""
    path = made / "dataset.json"
    described = plain_json(path)
    counts = {"train": (123_456_789_012, 98_765_432_109_876), "validation": (1_234_567, 9_876_543_210)}
    for name, (documents, size) in counts.items():
        described["splits"][name] |= {"documents": documents, "bytes": size}
    path.write_text(json.dumps(described))
    shown = gptlab("data", "info", made, environment={"COLUMNS": "60"})
    assert shown.returncode == 0, shown.stderr
    for number in (number for pair in counts.values() for number in pair):
        assert f" {number:,} " in shown.stdout
    assert "…" not in shown.stdout


def test_foreign_shards_are_described(gptlab, write_shards) -> None:
    folder = write_shards([1, 2, 3])
    shown = gptlab("data", "info", folder)
    assert shown.returncode == 0, shown.stderr
    assert "no dataset.json" in shown.stdout
    assert "1 2 3" in shown.stdout


Refused = Callable[..., str]


@pytest.mark.parametrize("position", [0, 9, 1023, 1024, 2000, -1])
def test_a_flipped_byte_is_found(refused: Refused, made: Path, position: int) -> None:
    shard = made / "train_000002.bin"
    content = bytearray(shard.read_bytes())
    content[position] ^= 1
    shard.write_bytes(content)
    assert "train_000002.bin" in refused("data", "verify", made)


def test_a_lost_a_cut_and_a_foreign_shard_are_found(refused: Refused, made: Path) -> None:
    shard = made / "train_000001.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    assert "truncated or damaged" in refused("data", "info", made)
    shard.unlink()
    assert "train_000001.bin: the shard is missing" in refused("data", "verify", made)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenizer", "byte", "--out", "o"], "nothing to prepare"),
        (["--input", "in.txt", "--tokenizer", "byte"], "--out"),
        (["--input", "in.txt", "--out", "o"], "--tokenizer"),
        (["--input", "none.txt", "--out", "o", "--tokenizer", "byte"], "none.txt: no such file"),
        (["--input", "in.txt", "--out", "o", "--tokenizer", "none"], "none"),
        (["--input", "empty.txt", "--out", "o", "--tokenizer", "byte"], "empty.txt: no text"),
        (["--input", "bad.txt", "--out", "o", "--tokenizer", "byte"], "bad.txt: invalid UTF-8 at byte 2"),
        (["--input", "bad.txt", "--out", "o", "--tokenizer", "byte", "--workers", "2"], "bad.txt: invalid UTF-8 at"),
        (["--input", "in.txt", "--out", "in.txt", "--tokenizer", "byte"], "in.txt: exists and is no data set"),
        (["--input", "in.txt", "--out", "in.txt", "--tokenizer", "byte", "--force"], "is no data set"),
        (["--input", "in.txt", "--out", "in.txt/x", "--tokenizer", "byte"], "in.txt is no folder"),
        (["--input", "in.txt", "--out", "o", "--tokenizer", "byte", "--shard-size", "many"], "--shard-size"),
        (["--input", "in.txt", "--out", "o", "--tokenizer", "byte", "--shard-size", "0"], "--shard-size 0"),
        (["--input", "in.txt", "--out", "o", "--tokenizer", "byte", "--shard-size", "3G"], "at most 2147483647"),
        (["--input=in.txt", "--out=o", "--tokenizer=byte", "--shard-size=1"], "--shard-size 1: must be at least 1000"),
        (["--input=in.txt", "--out=o", "--tokenizer=byte", "--workers=1000000"], "--workers 1000000: must be at most"),
        (["--input=in.txt", "--out=o", "--tokenizer=byte", f"--num-shards={10**30}"], "must be at most 100000"),
        (["--input=in.txt", "--out=o", "--tokenizer=byte", f"--limit-bytes={10**30}"], "must be at most 1000000000"),
        (["--input=in.txt", "--out=o", "--tokenizer=byte", f"--validation-tokens={10**30}"], "must be at most 10000"),
        (["--input=in.txt", "--out=o", "--tokenizer=byte", "--validation-fraction=nan"], "between 0 and 1"),
        (["--input=in.txt", "--out=o", "--tokenizer=byte", "--validation-fraction=1e-300"], "split"),
        (["--input", "in.txt", "--out", "o", "--tokenizer", "byte", "--limit-bytes", "1.5"], "whole number"),
        (["--input", "in.txt", "--out", "o", "--tokenizer", "byte", "--errors", "ignore"], "--errors ignore"),
        (["--input", "in.txt", "--out", "o", "--tokenizer", "byte", "--separator", ""], "--separator"),
        (["--input", "in.txt", "--out", "o", "--tokenizer", "byte", "--document-start", "("], "--document-start"),
        (["--input", "in.txt", "--out", "o", "--tokenizer", "byte", "--validation-fraction", "1"], "between 0 and 1"),
        (["--input", "one.jsonl", "--out", "o", "--tokenizer", "byte", "--validation-fraction", "0.1"], "--validation"),
        (
            ["--input=in.txt", "--out=o", "--tokenizer=byte", "--validation=in.txt", "--validation-tokens=5"],
            "only one of",
        ),
        (
            ["--input", "long.txt", "--out", "o", "--tokenizer", "byte", "--shard-size", "1K", "--num-shards", "1"],
            "cannot hold the first document",
        ),
        (["--input", "in.txt", "--out", "o", "--tokenizer", "byte", "--validation-tokens", "500"], "train split"),
        (["nonesuch", "--tokenizer", "byte"], "no preset 'nonesuch'"),
        (["txt360", "--tokenizer", "none"], "none"),
        (["tinystories-v2", "--input", "in.txt", "--tokenizer", "byte"], "--validation"),
        (["--input", "http://127.0.0.1:1/x.txt", "--out", "o", "--tokenizer", "byte"], "cannot be downloaded"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    refused: Refused, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "in.txt").write_text("some text here")
    (tmp_path / "long.txt").write_text("some text here " * 100)
    (tmp_path / "one.jsonl").write_text('{"text": "a"}')
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bad.txt").write_bytes(b"ab\xff")
    before = sorted(tmp_path.iterdir())
    assert message in refused("data", "prepare", *arguments)
    left = [path for path in sorted(tmp_path.iterdir()) if path not in before and path.name != "cache"]
    assert left == []


def test_a_missing_extra_is_named(gptlab, tmp_path: Path) -> None:
    (tmp_path / "shadow" / "datasets").mkdir(parents=True)
    (tmp_path / "shadow" / "datasets" / "__init__.py").write_text("raise ImportError('not installed')")
    done = gptlab(
        *["data", "prepare", "--input", "hf://owner/name", "--out", "o", "--tokenizer", "byte"],
        environment={"PYTHONPATH": str(tmp_path / "shadow")},
    )
    assert done.returncode == 2
    assert "pip install 'gptlab[hub]'" in done.stderr


def test_a_missing_data_set_says_how_to_make_it(refused: Refused) -> None:
    for command in ("info", "verify"):
        assert "gptlab data prepare" in refused("data", command, "none")


def test_replacing_takes_force(gptlab, refused: Refused, made: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("some text here")
    command = ["data", "prepare", "--input", "in.txt", "--out", made, "--tokenizer", "byte"]
    assert "--force" in refused(*command)
    assert gptlab(*command, "--force").returncode == 0
    assert json.loads((made / "dataset.json").read_text())["splits"].keys() == {"train"}
    assert not (made / "validation_000000.bin").exists()


PLACES = {
    "long": ("x" * 300, "a name of 300 bytes"),
    "long inside": (f"sets/{'x' * 300}/o", "a name of 300 bytes"),
    "line break": ("a\nb", r"a\nb: a name must not hold line breaks"),
    "escape": ("a\x1b[31mb", r"a\x1b[31mb: a name must not hold line breaks"),
    "file": ("in.txt/sets/o", "in.txt is no folder"),
    "dangling": ("dangling", "is a link to nowhere"),
    "dangling above": ("dangling/o", "dangling is no folder"),
    "loop": ("loop/o", "loop"),
    "device": ("/dev/null", "/dev/null"),
    "root": ("/", "/: exists and is no data set"),
    "here": (".", ".: exists and is no data set"),
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_places_where_nothing_can_be_written(refused: Refused, tmp_path: Path, where: str, force: list[str]) -> None:
    name, message = PLACES[where]
    (tmp_path / "in.txt").write_text("some text here")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    assert message in refused("data", "prepare", "--input", "in.txt", "--tokenizer", "byte", "--out", name, *force)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["info", "verify"])
@pytest.mark.parametrize("name", ["x" * 300, "a\nb", "in.txt", "dangling", "loop", ""])
def test_folders_that_are_none(refused: Refused, tmp_path: Path, command: str, name: str) -> None:
    (tmp_path / "in.txt").write_text("some text here")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    refused("data", command, name)


@pytest.mark.parametrize("name", ["x" * 300, "a\nb", "in.txt/x", "dangling", "loop", "http://[::1/x", "http://a b/"])
def test_inputs_that_are_none(refused: Refused, tmp_path: Path, name: str) -> None:
    (tmp_path / "in.txt").write_text("some text here")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    refused("data", "prepare", "--input", name, "--tokenizer", "byte", "--out", "o")
    refused("data", "prepare", "--input", "in.txt", "--validation", name, "--tokenizer", "byte", "--out", "o")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["train", "import"])
def test_where_no_tokenizer_can_be_written(refused: Refused, tmp_path: Path, command: str) -> None:
    (tmp_path / "in.txt").write_text("some text here " * 99)
    make = {"train": ["train", "--input", "in.txt", "--vocab-size", "300"], "import": ["import", "gpt2"]}[command]
    for name in ("x" * 300, "a\nb", "a/b", "..", "x\n"):
        refused("tokenizer", *make, "--name", name)
    (tmp_path / "tokenizers").write_text("a file")
    assert "tokenizers is no folder" in refused("tokenizer", *make, "--name", "a")


def test_a_folder_that_may_not_be_written_to(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known before any work: `os.access` stands in for the rights, which root does not heed."""
    import os

    (tmp_path / "in.txt").write_text("some text here " * 99)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    for command in (
        ["data", "prepare", "--input", "in.txt", "--tokenizer", "byte", "--out", "o"],
        ["tokenizer", "train", "--input", "in.txt", "--vocab-size", "300", "--name", "a"],
    ):
        assert "may not be written to" in refused(*command)
