"""The command that is proposed next is the right one: it runs as it stands, with what is validated on held out."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from helpers import gptlab

from gptlab.cli.advice import preparation


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "books").mkdir()
    for number in range(3):
        (tmp_path / f"books/train-{number}.txt").write_text(f"A tale of {number} cities and {number} cats. " * 40)
    (tmp_path / "books/validation-0.txt").write_text("Another tale, of a dog and a city. " * 40)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "command"),
    [
        (
            ["books/train-*.txt"],
            "gptlab data prepare --input 'books/train-*.txt' --validation 'books/validation-*.txt' --tokenizer t "
            "--out data/books",
        ),
        (["stdlib"], "gptlab data prepare stdlib --tokenizer t"),
        (
            ["books/train-0.txt", "books/train-1.txt"],
            "gptlab data prepare --input 'books/train-0.txt' --input 'books/train-1.txt' "
            "--validation 'books/validation-0.txt' --tokenizer t --out data/books",
        ),
        (["own.txt"], "gptlab data prepare --input 'own.txt' --validation-fraction 0.01 --tokenizer t --out data/t"),
        (
            ["https://example.org/a/b.txt"],
            "gptlab data prepare --input 'https://example.org/a/b.txt' --validation-fraction 0.01 --tokenizer t "
            "--out data/t",
        ),
        (["FILES"], "gptlab data prepare --input 'FILES' --validation-fraction 0.01 --tokenizer t --out data/t"),
    ],
)
def test_the_preparation_that_fits_the_training_of_a_tokenizer(books: Path, inputs: list[str], command: str) -> None:
    assert preparation("t", inputs) == command


def test_what_is_proposed_runs(books: Path) -> None:
    trained = gptlab(
        "tokenizer", "train", "--input", "books/train-*.txt", "--vocab-size", "265", "--name", "t", cwd=books
    )
    (proposed,) = (line for line in trained.stderr.splitlines() if "data prepare" in line)
    prepared = gptlab(*shlex.split(proposed.partition("gptlab ")[2]), cwd=books)
    assert "validation: 1 documents" in prepared.stdout
    assert (books / "data/books/dataset.json").is_file()
