"""What becomes of special tokens' text, where documents begin, and ids in place of text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gptlab.data import Reading, TokenDataset, prepare, verify
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
