"""Data sets on disk: our own, and those of llm.c, modded-nanogpt and nanoGPT as they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data import TokenDataset, info, verify
from gptlab.errors import DataError


def header(ids: list[int], magic: int, version: int, dtype: str) -> bytes:
    words = np.zeros(256, dtype="<i4")
    words[:3] = magic, version, len(ids)
    return words.tobytes() + np.asarray(ids, dtype=dtype).tobytes()


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    start=st.floats(0, 1),
    length=st.floats(0, 1),
)
def test_reads_cross_shards(tmp_path_factory, sizes: list[int], start: float, length: float) -> None:
    folder, ids = tmp_path_factory.mktemp("shards"), np.arange(sum(sizes))
    for number, part in enumerate(np.split(ids, np.cumsum(sizes)[:-1])):
        (folder / f"x_train_{number:06d}.bin").write_bytes(header(part.tolist(), 20240520, 1, "<u2"))
    data = TokenDataset.open(folder, "train")
    first = int(start * (len(ids) - 1))
    count = int(length * (len(ids) - first))
    assert data.tokens == len(ids)
    assert data.read(first, count).tolist() == ids[first : first + count].tolist()


def test_reading_past_the_end_is_an_error(write_shards) -> None:
    data = TokenDataset.open(write_shards([1, 2, 3]), "train")
    for start, length in ((2, 2), (-1, 1), (4, 1)):
        with pytest.raises(IndexError):
            data.read(start, length)


def test_nanogpt_files_are_read_as_they_are(tmp_path: Path) -> None:
    np.arange(5000, dtype=np.uint16).tofile(tmp_path / "train.bin")
    np.arange(70, dtype=np.uint16).tofile(tmp_path / "val.bin")
    (tmp_path / "meta.pkl").write_bytes(b"never loaded")
    train, val = TokenDataset.open(tmp_path, "train"), TokenDataset.open(tmp_path, "validation")
    assert (train.tokens, val.tokens) == (5000, 70)
    assert train.read(4990, 10).tolist() == list(range(4990, 5000))
    assert (train.vocab_size, train.end_of_text, train.documents) == (None, None, None)
    assert train.max_id() == 4999


def test_modded_nanogpt_and_llm_c_files_are_read_as_they_are(tmp_path: Path) -> None:
    for number in (1, 2):
        ids = [50256, *range(number * 10, number * 10 + 9)]
        (tmp_path / f"fineweb_train_{number:06d}.bin").write_bytes(header(ids, 20240520, 1, "<u2"))
    (tmp_path / "fineweb_val_000000.bin").write_bytes(header([50256, 5, 6], 20240520, 1, "<u2"))
    train = TokenDataset.open(tmp_path, "train", vocab_size=50257, end_of_text=50256)
    assert train.read(8, 4).tolist() == [17, 18, 50256, 20]
    assert TokenDataset.open(tmp_path, "validation").tokens == 3
    verify(tmp_path)


def test_llm_c_files_for_llama_hold_uint32(tmp_path: Path) -> None:
    (tmp_path / "tiny_train.bin").write_bytes(header([128000, 70000, 3], 20240801, 7, "<u4"))
    data = TokenDataset.open(tmp_path, "train")
    assert data.read(0, 3).tolist() == [128000, 70000, 3]


def test_the_fingerprint_follows_the_content(tmp_path: Path, write_shards) -> None:
    one = TokenDataset.open(write_shards([1, 2, 3], name="a"), "train").fingerprint
    same = TokenDataset.open(write_shards([1, 2, 3], name="b"), "train").fingerprint
    other = TokenDataset.open(write_shards([1, 2, 4], name="c"), "train").fingerprint
    assert one == same != other


@pytest.mark.parametrize("damage", [lambda data: data[:-2], lambda data: data + b"\0\0", lambda data: data[:1500]])
def test_a_shard_of_the_wrong_size_is_refused(write_shards, damage) -> None:
    folder = write_shards(range(500))
    path = folder / "some_train_000001.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"some_train_000001\.bin: .* truncated or damaged"):
        TokenDataset.open(folder, "train")


def test_files_that_are_no_tokens_are_refused(tmp_path: Path) -> None:
    for content, message in (
        (b"", "damaged"),
        (b"abc", "damaged"),
        (header([1], 20240520, 2, "<u2"), "unknown shard version 2"),
    ):
        (tmp_path / "train.bin").write_bytes(content)
        with pytest.raises(DataError, match=message):
            TokenDataset.open(tmp_path, "train")


def test_a_missing_folder_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gptlab data prepare"):
        TokenDataset.open(tmp_path / "none", "train")
    with pytest.raises(DataError, match=r"\*val\*\.bin"):
        TokenDataset.open(tmp_path, "validation")
    with pytest.raises(DataError, match=r"\*train\*\.bin"):
        info(tmp_path)


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/hostname", "sub/x.bin", "..\\secret.bin", "..", "", 3, None])
def test_a_description_leads_to_no_file_elsewhere(tmp_path: Path, name: object) -> None:
    """It comes with data that somebody else made."""
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(header([1, 2, 3], 20240520, 1, "<u2"))
    shard = {"file": name, "tokens": 3, "sha256": "0"}
    split = {"documents": 1, "tokens": 3, "bytes": 3, "shards": [shard]}
    described = {
        "format": "gptlab-tokens",
        "format_version": 1,
        "tokenizer": {"name": "byte", "kind": "byte", "hash": "0"},
        "vocab_size": 257,
        "end_of_text": 256,
        "splits": {"train": split},
        "sources": [],
        "options": {},
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    for read in (info, verify, lambda path: TokenDataset.open(path, "train")):
        with pytest.raises(DataError, match=r"dataset\.json: (names .* which is no file of this folder|.*0\.file is)"):
            read(folder)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": "other", "format_version": 1}', "\xff"])
def test_a_damaged_description_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"dataset\.json"):
        TokenDataset.open(tmp_path, "train")
