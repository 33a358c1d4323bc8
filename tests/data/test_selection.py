"""What is taken of an input: caps, weights and filters, against plain list comprehensions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptlab.data import Input, Reading, TokenDataset, iter_documents, prepare, verify
from gptlab.data.preparation.writer import DatasetWriter
from gptlab.errors import DataError

TEXTS = [f"document {n} " + "word " * (n * 7 % 40) + ("banned" if n % 5 == 0 else "") for n in range(200)]


@pytest.fixture
def lines(tmp_path: Path) -> str:
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return str(tmp_path / "in.jsonl")


def taken(given: Input, **options: Any) -> list[str]:
    return [document.text for document in iter_documents([given], **options)]


def reach(texts: list[str], cap: int, size: Callable[[str], int]) -> list[str]:
    """The first texts, up to the one that reaches the cap."""
    found, total = [], 0
    for text in texts:
        if total >= cap:
            break
        found.append(text)
        total += size(text)
    return found


def test_filters_and_caps_take_what_they_say(lines: str, tmp_path: Path) -> None:
    clean = [text for text in TEXTS if "banned" not in text]
    assert taken(Input(lines, without=("banned", "nowhere"))) == clean
    assert taken(Input(lines, min_length=100)) == [text for text in TEXTS if len(text) >= 100]
    assert taken(Input(lines, max_documents=7)) == TEXTS[:7]
    assert taken(Input(lines, max_documents=7, without=("banned",))) == clean[:7]
    assert taken(Input(lines, max_bytes=3000)) == reach(TEXTS, 3000, len)
    (tmp_path / "mine.py").write_text("def keep(text):\n    return text.count('word') > 20\n")
    assert taken(Input(lines, keep=f"{tmp_path}/mine.py:keep")) == [t for t in TEXTS if t.count("word") > 20]


def test_weights_repeat_documents_or_take_a_share(lines: str) -> None:
    share = [t for t in TEXTS if int.from_bytes(hashlib.blake2b(t.encode(), digest_size=8).digest(), "big") < 2**62]
    assert 30 < len(share) < 70  # a quarter of 200
    assert taken(Input(lines, weight=2)) == TEXTS * 2
    assert taken(Input(lines, weight=0.25)) == share
    assert taken(Input(lines, weight=2.25, max_documents=430)) == [*TEXTS, *TEXTS, *share][:430]


@pytest.mark.parametrize("workers", [1, 2])
def test_tokens_are_capped_by_source(lines: str, tmp_path: Path, workers: int) -> None:
    inputs = [Input(lines, max_tokens=2000), Input(lines, max_tokens=500, without=("banned",)), "text:the end"]
    prepare(inputs, tmp_path / "out", tokenizer="byte", workers=workers, shard_size=1000)
    first = reach(TEXTS, 2000, lambda text: len(text) + 1)
    second = reach([text for text in TEXTS if "banned" not in text], 500, lambda text: len(text) + 1)
    data = TokenDataset.open(tmp_path / "out", "train")
    assert data.read(0, data.tokens).tolist() == [i for t in (*first, *second, "the end") for i in (256, *t.encode())]
    options = json.loads((tmp_path / "out" / "dataset.json").read_text())["options"]
    assert options["inputs"][1] == {"source": lines, "max_tokens": 500, "without": ["banned"]}
    verify(tmp_path / "out")


ARTICLES = [f" = Title {n} = \n" + f"Some line of it {n} . \n" * (n * 13 % 97) for n in range(80)]


def mixture(tmp_path: Path, lines: str) -> list[str | Input]:
    """Every way to choose, over small blocks whose documents go on from one to the next."""
    (tmp_path / "wiki.txt").write_text("".join(ARTICLES))
    title = r" = Title"
    return [
        Input(lines, weight=1.5, max_bytes=9000),
        Input(str(tmp_path / "wiki.txt"), document_start=title, without=("of it 7 ",), max_documents=60),
        "text:between",
        Input(str(tmp_path / "wiki.txt"), document_start=title, max_tokens=7000),
    ]


def test_documents_are_judged_whole_wherever_blocks_end(lines: str, tmp_path: Path) -> None:
    wiki = mixture(tmp_path, lines)[1]
    assert isinstance(wiki, Input)
    wanted = [text for text in ARTICLES if "of it 7 " not in text][:60]
    assert taken(wiki, limit_bytes=10**6) == taken(wiki) == wanted
    small = list(iter_documents([wiki], limit_bytes=40_000))  # makes small blocks
    assert [d.text for d in small] == wanted[: len(small)]


def test_it_goes_on_from_any_shard(lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = mixture(tmp_path, lines)
    options: dict[str, Any] = {"tokenizer": "byte", "workers": 1, "shard_size": 4000, "limit_bytes": 60_000}
    whole = prepare(inputs, tmp_path / "whole", **options)
    shards = len(whole.splits["train"].shards)
    assert shards > 8
    close = DatasetWriter._close_shard
    for stop in range(1, shards):
        count = 0

        def fail(self: DatasetWriter, stop: int = stop) -> None:
            nonlocal count
            was_open = self.writer is not None
            close(self)
            count += was_open
            if count == stop:
                raise DataError("stopped here")

        with monkeypatch.context() as patched:
            patched.setattr(DatasetWriter, "_close_shard", fail)
            with pytest.raises(DataError, match="stopped here"):
                prepare(inputs, tmp_path / "again", **options)
        assert prepare(inputs, tmp_path / "again", **options) == whole
        options["force"] = True


def test_a_yaml_file_of_one_s_own_is_a_preset(gptlab, refused: Callable[..., str], lines: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def keep(text):\n    return 'word' in text\n\ndef bad(text):\n    pass\n")
    (tmp_path / "mix.yaml").write_text(
        f"inputs:\n  - {{source: {lines}, max_documents: 1K, without: banned, keep: './mine.py:keep'}}\n"
        "  - text:Some more words\nvalidation: ['text:held out word']\ntokenizer: byte\n"
    )
    done = gptlab("data", "prepare", "mix.yaml", "--workers", "1", "--min-length", "12")
    assert done.returncode == 0, done.stderr
    wanted = sum("banned" not in text and "word" in text and len(text) >= 12 for text in TEXTS) + 1
    assert f"train: {wanted:,} documents" in done.stdout
    assert "in data/mix" in done.stdout
    done = gptlab("tokenizer", "train", "--input", "mix.yaml", "--vocab-size", "260", "--name", "t")
    assert done.returncode == 0, done.stderr
    command = ("data", "prepare", "--input", lines, "--tokenizer", "byte", "--out", "out", "--workers", "1")
    assert "mine.py:bad: gives None for a document" in refused(*command, "--keep", "./mine.py:bad")
    assert "did you mean 'keep'" in refused(*command, "--keep", "./mine.py:kep")
    assert "no such file ./none.py" in refused(*command, "--keep", "./none.py:keep")
    assert "no text" in refused(*command, "--without", "document")
    (tmp_path / "bad.yaml").write_text(f"inputs: [{{source: {lines}, max_documnts: 3}}]")
    assert "did you mean 'max_documents'" in refused("data", "prepare", "bad.yaml", "--tokenizer", "byte")


def test_what_cannot_be_chosen(lines: str, tmp_path: Path) -> None:
    def refuse(given: Input, **options: Any) -> str:
        with pytest.raises(DataError) as error:
            prepare([given], tmp_path / "out", tokenizer="byte", workers=1, **options)
        return str(error.value)

    assert "weight 2 repeats documents" in refuse(Input(lines, weight=2), validation_fraction=0.1)
    assert "before there are tokens to cap" in refuse(Input(lines, max_tokens=9), validation_fraction=0.1)
    with pytest.raises(DataError, match="weight 0: must lie between"):
        Input(lines, weight=0)
    with pytest.raises(DataError, match="max_bytes 0: must be at least 1"):
        Input(lines, max_bytes=0)
    with pytest.raises(DataError, match="tokens are counted where text is tokenized"):
        taken(Input(lines, max_tokens=9))


def test_a_plain_input_changes_nothing(lines: str, tmp_path: Path) -> None:
    plain = prepare([lines], tmp_path / "a", tokenizer="byte", workers=1, reading=Reading())
    assert prepare([Input(lines)], tmp_path / "b", tokenizer="byte", workers=1) == plain
