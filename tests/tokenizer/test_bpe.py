from __future__ import annotations

import importlib.util
import itertools
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rustbpe
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab import processes
from gptlab.errors import DataError
from gptlab.tokenizer import END_OF_TEXT, Tokenizer, byte_tokenizer, counting, grow_bpe, train_bpe
from gptlab.tokenizer.byte_level import byte_alphabet, to_text
from gptlab.tokenizer.merging import frequent_merges
from gptlab.tokenizer.patterns import GPT2, GPT4

_spec = importlib.util.spec_from_file_location("bpe_reference", Path(__file__).with_name("reference.py"))
assert _spec is not None
assert _spec.loader is not None
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)


def ordinary(tokenizer: Tokenizer) -> list[bytes]:
    return [token for token in tokenizer.token_bytes() if token]


@pytest.mark.parametrize(("name", "published"), [("gpt4", reference.GPT4_PUBLISHED), ("gpt2", GPT2)])
def test_merges_equal_the_reference(awkward: list[str], name: str, published: str) -> None:
    (tokenizer,) = train_bpe(awkward, [700], name="t", pattern=name)
    assert ordinary(tokenizer) == reference.train(awkward, 699, published)


def test_merges_equal_those_of_rustbpe_on_real_text(awkward: list[str], test_data: Path) -> None:
    import pyarrow.parquet as pq

    books = pq.read_table(test_data / "gutenberg/validation-00000-of-00001.parquet", columns=["text"])
    texts = [*awkward, *(text[:200_000] for text in books.column("text").to_pylist()[:8])]
    (tokenizer,) = train_bpe(texts, [3000], name="t")
    theirs = rustbpe.Tokenizer()
    theirs.train_from_iterator(iter(texts), 2999, pattern=GPT4)
    assert ordinary(tokenizer) == [bytes(token) for token, _ in theirs.get_mergeable_ranks()]


def test_merges_equal_those_of_tokenizers_but_for_ties(test_data: Path) -> None:
    """It numbers bytes in the order of GPT-2's alphabet, and that decides between pairs that are equally frequent."""
    text = (test_data / "tinyshakespeare/input.txt").read_text(encoding="utf-8")[:100_000]
    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(GPT4), "isolated")
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, level])
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=399, initial_alphabet=alphabet, show_progress=False)
    engine.train_from_iterator([text], trainer)
    by_character = sorted(range(256), key=lambda byte: byte_alphabet()[byte])
    theirs = reference.train([text], 399, GPT4, by_character)
    found = [left + right for left, right in json.loads(engine.to_str())["model"]["merges"]]
    assert [to_text(token) for token in theirs[256:]] == found
    (mine,) = train_bpe([text], [400], name="t")
    assert len(set(theirs) & set(ordinary(mine))) > 390


def test_repeated_letters_are_counted_with_overlaps_and_merged_without() -> None:
    # aaa twice: four aa (overlapping). xy three times. Counting without overlap would take xy first.
    (tokenizer,) = train_bpe(["aaa", "aaa", "xy", "xy", "xy"], [260], name="t")
    assert ordinary(tokenizer)[256:] == [b"aa", b"xy", b"aaa"]
    assert tokenizer.encode("aaaaa") == [256, 258]  # aa aa a → aa aaa


def test_ties_go_to_the_smallest_ids() -> None:
    (tokenizer,) = train_bpe(["zq zq", "bc", "bc", "by", "by"], [260], name="t")
    assert ordinary(tokenizer)[256:259] == [b"bc", b"by", b"zq"]


def test_encoding_equals_the_reference(awkward: list[str]) -> None:
    (tokenizer,) = train_bpe(awkward[:5], [400], name="t")
    for text in awkward:
        assert tokenizer.encode(text) == reference.encode(text, tokenizer.token_bytes(), reference.GPT4_PUBLISHED)


def test_same_result_for_any_number_of_processes(awkward: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_ALONE_BYTES", 1 << 14)
    monkeypatch.setattr(counting, "_BATCH_BYTES", 1 << 14)
    alone, shared = (train_bpe(awkward * 20, [900], name="t", workers=workers)[0] for workers in (1, 2))
    assert shared.hash == alone.hash
    assert shared.trained_on == alone.trained_on == {"texts": 220, "bytes": sum(len(t.encode()) for t in awkward) * 20}


def test_a_counting_process_that_dies_is_one_line(awkward: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_ALONE_BYTES", 1 << 14)
    monkeypatch.setattr(counting, "_BATCH_BYTES", 1 << 14)
    dying = processes.spawned_pool
    monkeypatch.setattr(counting, "spawned_pool", lambda workers, *_: dying(workers, os._exit, 1))
    with pytest.raises(DataError, match=r"a counting process died, .* fewer workers"):
        train_bpe(awkward * 20, [900], name="t", workers=2)


def test_nested_sizes_are_prefixes_of_each_other(awkward: list[str]) -> None:
    small, middle, large = train_bpe(awkward, [700, 300, 512], name="t", special_tokens=["<|user|>"])
    assert [t.name for t in (small, middle, large)] == ["t-300", "t-512", "t-700"]
    assert [t.vocab_size for t in (small, middle, large)] == [300, 512, 700]
    assert ordinary(middle)[:298] == ordinary(small)
    assert ordinary(large)[:510] == ordinary(middle)
    assert large.special_tokens == {END_OF_TEXT: 698, "<|user|>": 699}


def test_growing_keeps_old_ids_and_continues_the_training(awkward: list[str]) -> None:
    (small,) = train_bpe(awkward, [300], name="t", special_tokens=["<|user|>"])
    middle, large = grow_bpe(small, awkward, [400, 700], name="g", special_tokens=["<|more|>"])
    assert large.vocab_size == 700
    assert large.token_bytes()[:300] == small.token_bytes()
    assert large.special_tokens == {END_OF_TEXT: 298, "<|user|>": 299, "<|more|>": 699}
    assert large.token_bytes()[:399] == middle.token_bytes()[:399]
    (at_once,) = train_bpe(awkward, [698], name="t")
    assert ordinary(large) == ordinary(at_once)
    text = "the other cat, 你好 aaaaaaa"
    assert large.decode(large.encode(text)) == text
    assert len(large.encode(text)) < len(small.encode(text))


def test_growing_twice_equals_growing_once_in_its_merges(awkward: list[str]) -> None:
    (small,) = train_bpe(awkward, [300], name="t")
    (once,) = grow_bpe(small, awkward, [500], name="g")
    (half,) = grow_bpe(small, awkward, [400], name="g")
    (twice,) = grow_bpe(half, awkward, [500], name="g")
    assert twice.hash == once.hash


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 5)), max_size=8))
def test_the_growing_trainer_equals_counting_anew(words: list[tuple[list[int], int]]) -> None:
    arrays = [np.array(word, dtype=np.uint16) for word, _ in words]
    weights = np.array([weight for _, weight in words], dtype=np.int64)
    merges = [merge[:2] for merge in itertools.islice(frequent_merges(arrays, weights, 4), 20)]
    slow = [(word, weight) for word, weight in words]
    for number in range(20):
        pairs: dict[tuple[int, int], int] = {}
        for word, weight in slow:
            for pair in itertools.pairwise(word):
                pairs[pair] = pairs.get(pair, 0) + weight
        if not pairs:
            assert len(merges) == number
            return
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        assert merges[number] == best
        slow = [(reference.replace_pair(word, best, 4 + number), weight) for word, weight in slow]


def test_a_stream_is_consumed_once_and_never_held(awkward: list[str]) -> None:
    alive = 0

    class Text(str):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    most = 0

    def texts() -> Iterator[str]:
        nonlocal alive, most
        for number in range(3000):
            alive += 1
            most = max(most, alive)
            yield Text(f"{awkward[0]} {number % 7}")

    (tokenizer,) = train_bpe(texts(), [265], name="t")
    assert most < 10
    assert tokenizer.trained_on["texts"] == 3000


@pytest.mark.parametrize("pattern", ["gpt4", "gpt2"])
@pytest.mark.parametrize("character", [" ", "\t", "\n", "\u3000"])
def test_a_million_blanks(pattern: str, character: str) -> None:
    text = "word" + character * 1_000_000 + "word"
    (tokenizer,) = train_bpe([text, "some more words"], [270], name="t", pattern=pattern)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    (array,) = tokenizer.encode_documents([text])
    assert array.tolist() == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("texts", "sizes", "message"),
    [
        ([], [300], "empty"),
        (["", ""], [300], "empty"),
        (["abc abc"], [300], r"vocab_sizes=\[260\]"),
        (["abc"], [257], "too small"),
        (["abc"], [], "no vocabulary size"),
        (["abc"], [1 << 40], "too large"),
        (["ok", "half \ud800 pair"], [300], "document 1 .*surrogate"),
    ],
)
def test_what_cannot_be_trained(texts: list[str], sizes: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        train_bpe(texts, sizes, name="t")


def test_an_error_of_the_source_passes_through() -> None:
    def texts() -> Iterator[str]:
        yield "fine"
        raise DataError("file 3 is damaged")

    with pytest.raises(DataError, match="file 3 is damaged"):
        train_bpe(texts(), [300], name="t")


@pytest.mark.parametrize("text", ["a", "a b c d", "ab", "aaaa b aaaa"])
@pytest.mark.parametrize("specials", [[], ["<a>"]])
def test_the_size_that_is_advised_can_be_had(text: str, specials: list[str]) -> None:
    options = {"name": "t", "special_tokens": specials}
    with pytest.raises(DataError, match="runs out of pairs") as refused:
        train_bpe([text], [400], **options)
    advised = re.search(r"vocab_sizes=\[(\d+)\]$", str(refused.value))
    if advised is None:
        assert text == "a"
        assert "take kind=" in str(refused.value)
    else:
        (made,) = train_bpe([text], [int(advised[1])], **options)
        with pytest.raises(DataError, match="it has none; give more text, or keep 't' as it is"):
            grow_bpe(made, ["a"], [400], name="g")


def test_what_cannot_grow(awkward: list[str]) -> None:
    (small,) = train_bpe(awkward, [300], name="t")
    with pytest.raises(DataError, match="only bpe"):
        grow_bpe(byte_tokenizer(), awkward, [300], name="g")
    with pytest.raises(DataError, match="too small"):
        grow_bpe(small, awkward, [300], name="g")
    with pytest.raises(DataError, match="runs out of pairs"):
        grow_bpe(small, ["a few words"], [900], name="g")
    with pytest.raises(DataError, match="empty"):
        grow_bpe(small, [], [900], name="g")


def test_special_tokens_must_be_distinct() -> None:
    with pytest.raises(DataError, match="twice"):
        train_bpe(["abc"], [300], name="t", special_tokens=["<a>", "<a>"])
    with pytest.raises(DataError, match="blank"):
        train_bpe(["abc"], [300], name="t", special_tokens=[" "])


@pytest.mark.slow
def test_real_text_trains_as_the_reference_does(test_data: Path) -> None:
    text = (test_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    pieces = [text[start : start + 10_000] for start in range(0, 200_000, 10_000)]
    (tokenizer,) = train_bpe(pieces, [450], name="t")
    assert ordinary(tokenizer) == reference.train(pieces, 449, reference.GPT4_PUBLISHED)
    assert tokenizer.pattern == GPT4


def test_random_seeds_do_not_matter(awkward: list[str]) -> None:
    shuffled = awkward * 2
    random.Random(1).shuffle(shuffled)
    (one,) = train_bpe(awkward * 2, [600], name="t")
    (other,) = train_bpe(shuffled, [600], name="t")
    assert one.hash == other.hash
