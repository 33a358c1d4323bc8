"""What becomes of special tokens' text, where documents begin, and ids in place of text."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gptlab.data import Reading, TokenDataset, prepare, verify
from gptlab.data.sources.resolve import read_documents, resolve
from gptlab.errors import DataError
from gptlab.tokenizer import byte_tokenizer


def ids_of(folder: Path, split: str = "train") -> list[int]:
    data = TokenDataset.open(folder, split)  # type: ignore[arg-type]
    return [int(token) for token in data.read(0, data.tokens)]


# ---------------------------------------------------------------- special tokens


def test_special_tokens_in_documents_are_what_was_asked_for(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(special_tokens=["<|u|>"])
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "a<|u|>b"}) + "\n" + json.dumps({"text": "c"}))

    def made(*policy: str) -> list[int]:
        out = tmp_path / "-".join(["out", *map(str, map(len, policy))])
        reading = Reading(special_tokens=policy)
        prepare([str(tmp_path / "in.jsonl")], out, tokenizer=tokenizer, reading=reading, workers=1, force=True)
        verify(out)
        return ids_of(out)

    as_text = [256, *b"a<|u|>b", 256, *b"c"]
    assert made() == as_text
    assert made("all") == made("<|u|>") == [256, *b"a", 257, *b"b", 256, *b"c"]
    assert "special_tokens" not in json.loads((tmp_path / "out" / "dataset.json").read_text())["options"]
    with pytest.raises(DataError, match=r"in\.jsonl: the text holds the special token '<\|u\|>' at character 1"):
        made("raise")
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "a<|endoftext|>b"}))
    assert made() == [256, *b"a<|endoftext|>b"]
    with pytest.raises(DataError, match=r"in\.jsonl: <\|endoftext\|> stands inside of a document"):
        made("all")


def test_the_policy_is_an_option_of_the_command(gptlab, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a<|endoftext|>b")
    command = ("data", "prepare", "--input", "in.txt", "--tokenizer", "byte", "--workers", "1", "--out")
    assert gptlab(*command, "plain").returncode == 0
    line = refused(*command, "out", "--special-tokens", "raise")
    assert "in.txt: the text holds the special token '<|endoftext|>' at character 1" in line
    assert gptlab(*command, "cut", "--special-tokens", "raise", "--separator", "<|endoftext|>").returncode == 0
    assert ids_of(tmp_path / "cut") == [256, *b"a", 256, *b"b"]


# ---------------------------------------------------------------- where documents begin


ARTICLES = [
    f" = Title {n} = \n \n" + "".join(f"Line {i} of it . \n" for i in range(n)) + " = = Part = = \n" for n in range(60)
]
TITLE = r" = [^=].* = \n$"


@pytest.mark.parametrize("block_bytes", [1 << 10, 1 << 20])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_lines_of_a_text_file_begin_documents(tmp_path: Path, block_bytes: int, packed: str) -> None:
    """WikiText as a file is articles, as its rows are, wherever blocks end."""
    path = tmp_path / f"wiki.txt{packed}"
    path.write_bytes((gzip.compress if packed else bytes)("".join(ARTICLES).encode()))
    blocks = read_documents(resolve([str(path)], block_bytes=block_bytes), Reading(document_start=TITLE))
    found: list[str] = []
    for _, documents in blocks:
        for document in documents:
            found += [""] * (not document.continues)
            found[-1] += document.text
    assert found == ARTICLES


def test_wikitext_is_articles(test_data: Path, tmp_path: Path) -> None:
    files = test_data / "wikitext" / "wiki.valid.tokens.gz"
    reading = Reading(document_start=TITLE)
    made = prepare(
        [str(files)], tmp_path / "out", tokenizer="byte", validation_fraction=0.1, reading=reading, workers=1
    )
    titles = [line for line in gzip.decompress(files.read_bytes()).decode().splitlines(True) if re.match(TITLE, line)]
    assert sum(split.documents for split in made.splits.values()) == 1 + len(titles)  # a blank line stands before


def test_two_ways_to_begin_a_document_are_one_too_many(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a")
    options = ("--input", "in.txt", "--tokenizer", "byte", "--out", "out", "--separator", "x", "--document-start", "y")
    assert "--separator and --document-start both say where documents begin" in refused("data", "prepare", *options)


# ---------------------------------------------------------------- text as it is given


def test_literal_text_is_a_source(gptlab, refused: Callable[..., str], tmp_path: Path) -> None:
    words = ("--input", "text:To be, or not to be", "--validation", "text:that is: the question")
    done = gptlab("data", "prepare", *words, "--tokenizer", "byte", "--out", "out", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert ids_of(tmp_path / "out") == [256, *b"To be, or not to be"]
    assert ids_of(tmp_path / "out", "validation") == [256, *b"that is: the question"]
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["sources"] == [words[1], words[3]]
    assert "text: without a text" in refused("data", "prepare", "--input", "text:", "--tokenizer", "byte", "--out", "o")


# ---------------------------------------------------------------- standard input


def piped(tmp_path: Path, data: bytes, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "gptlab", *arguments]
    done = subprocess.run(command, cwd=tmp_path, input=data, capture_output=True)
    return done.returncode, done.stderr.decode()


def test_standard_input_is_text_that_is_read_once(tmp_path: Path) -> None:
    texts = [f"story {n} of many, é" for n in range(2000)]
    data = "|".join(texts).encode()
    command = ("data", "prepare", "--input", "-", "--tokenizer", "byte", "--separator", "|", "--out")
    code, told = piped(tmp_path, data, *command, "out", "--validation-tokens", "1K", "--workers", "2")
    assert code == 0, told
    assert "standard input is read once, as text: hold out by --validation-tokens or --validation, and one" in told
    (tmp_path / "in.txt").write_bytes(data)
    reading = Reading(separator="|")
    prepare([str(tmp_path / "in.txt")], tmp_path / "f", tokenizer="byte", reading=reading, validation_tokens=1000)
    for split in ("train", "validation"):
        assert ids_of(tmp_path / "out", split) == ids_of(tmp_path / "f", split)
    assert json.loads((tmp_path / "out/dataset.json").read_text())["sources"] == ["standard input"]
    code, told = piped(tmp_path, data, "tokenizer", "train", "--input", "-", "--vocab-size", "280", "--name", "t")
    assert code == 0, told


def test_what_standard_input_cannot_do_is_one_line(tmp_path: Path) -> None:
    command = ("data", "prepare", "--input", "-", "--tokenizer", "byte", "--workers", "1", "--out", "o")
    line = b'{"text": "a"}\n'
    for data, options, message in (
        (b"a b c", ("--validation-fraction", "0.1"), "standard input: a stream cannot be counted for --validation-f"),
        (b"a b c", ("--validation", "-"), "standard input: is training text as well"),
        (b"a b c", ("--input", "-"), "standard input was read to its end already"),
        (line * 3, (), "standard input: begins with a line of JSON, and - reads plain text"),
        (gzip.compress(b"abc"), (), "standard input: is a gzip file, no text"),
        (b"", (), "standard input: no text for the train split"),
    ):
        code, told = piped(tmp_path, data, *command, *options)
        errors = [each for each in told.splitlines() if each.startswith("error: ")]
        assert (code, len(errors)) == (2, 1), told
        assert message in errors[0]
        assert not (tmp_path / "o").exists()
