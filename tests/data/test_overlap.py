"""Validation text that is training text: refused as files, counted as documents."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import plain_json

from gptlab.data import Manifest, TokenDataset, prepare
from gptlab.data.preparation import overlap
from gptlab.errors import DataError


def lines(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.mark.parametrize("validation", ["t.txt", "./t.txt", "link.txt", "copy.txt", "sub", "*.txt"])
def test_a_file_for_both_splits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("t.txt", "copy.txt", "sub/other.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("some text")
    Path("of_its_size.txt").write_text("same text")
    Path("link.txt").symlink_to("t.txt")
    with pytest.raises(DataError, match=r"training text as well; give other text for validation"):
        prepare(["t.txt"], "out", tokenizer="byte", validation=[validation], workers=1)
    assert not Path("out").exists()
    prepare(["t.txt"], "out", tokenizer="byte", validation=["of_its_size.txt"], workers=1)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 22])
def test_documents_of_both_splits_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], chunk: int
) -> None:
    """However the documents lie over chunks and shards; here the same ones under other names and in another format."""
    monkeypatch.setattr(overlap, "_CHUNK", chunk)
    rng = np.random.default_rng(0)
    train = ["".join(chr(c) for c in rng.integers(0x61, 0x64, rng.integers(1, 30))) for _ in range(300)]
    validation = [*train[10:14], "not in it", train[10], *train[200:202], "nor this"]
    (tmp_path / "t.jsonl").write_text(lines(train))
    (tmp_path / "v.jsonl.gz").write_bytes(gzip.compress(lines(validation).encode()))
    inputs, other = [str(tmp_path / "t.jsonl")], [str(tmp_path / "v.jsonl.gz")]
    prepare(inputs, tmp_path / "out", tokenizer="byte", validation=other, shard_size=1000, workers=1)
    expected = {
        "train": sum(text in validation for text in train),
        "validation": sum(text in train for text in validation),
    }
    assert Manifest.load(tmp_path / "out").shared_documents == expected
    assert expected["validation"] >= 7
    assert f"{expected['validation']} of 9 validation documents are training documents" in capsys.readouterr().err


def test_a_data_set_of_which_it_is_not_known_is_read(gptlab, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(lines([f"text {number}" for number in range(20)]))
    prepare([str(tmp_path / "t.jsonl")], tmp_path / "out", tokenizer="byte", validation_fraction=0.1, workers=1)
    assert "in both splits: 0 validation and 0 training documents" in gptlab("data", "info", "out").stdout
    described = plain_json(tmp_path / "out" / "dataset.json")
    fingerprint = TokenDataset.open(tmp_path / "out", "train").fingerprint
    del described["shared_documents"]
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(described))
    assert Manifest.load(tmp_path / "out").shared_documents is None
    assert TokenDataset.open(tmp_path / "out", "train").fingerprint == fingerprint
    assert "in both splits: not known" in gptlab("data", "info", "out").stdout
