from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.errors import DataError
from gptlab.tokenizer import (
    END_OF_TEXT,
    SpecialPolicy,
    Tokenizer,
    byte_tokenizer,
    char_tokenizer,
    grow_bpe,
    train_bpe,
    train_char,
)

TEXT = [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "aaaa 中文中文 🙂🙂\r\n\r\n  12345 don't",
    "the end of the text",
]
SPECIALS = ["<|user|>", "<|user|>!", "<sp ace>"]


def _bpe(pattern: str = "gpt4") -> Tokenizer:
    return train_bpe(TEXT, [310], name="b", pattern=pattern, special_tokens=SPECIALS)[0]


BYTE = byte_tokenizer(special_tokens=SPECIALS)
GPT4_LIKE, GPT2_LIKE = _bpe("gpt4"), _bpe("gpt2")
GROWN = grow_bpe(GPT4_LIKE, TEXT, [318], name="g", special_tokens=["<late>"])[0]
LOSSLESS = [BYTE, GPT4_LIKE, GPT2_LIKE, GROWN]


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    for tokenizer in LOSSLESS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert b"".join(piece for _, piece in tokenizer.pieces(text)) == text.encode("utf-8")
        assert tokenizer.encode_documents([text])[0].tolist() == ids


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*SPECIALS, END_OF_TEXT, "<|user|", "!", "<|", "a", " ", "\n", "endoftext", "é"])))
def test_special_text_is_text_unless_asked(parts: list[str]) -> None:
    text = "".join(parts)
    for tokenizer in LOSSLESS:
        special = set(tokenizer.special_tokens.values())
        plain = tokenizer.encode(text)
        assert not special & set(plain)
        assert not special & set(tokenizer.encode_documents([text])[0].tolist())
        parsed = tokenizer.encode(text, allow_special=True)
        assert tokenizer.decode(plain) == tokenizer.decode(parsed) == text
        assert bool(special & set(parsed)) == any(token in text for token in tokenizer.special_tokens)


def test_the_longest_special_token_wins() -> None:
    for tokenizer in LOSSLESS:
        assert tokenizer.encode("<|user|>!", allow_special=True) == [tokenizer.special_tokens["<|user|>!"]]


@pytest.mark.parametrize("tokenizer", LOSSLESS, ids=lambda tokenizer: tokenizer.name)
def test_the_policy_says_which_special_tokens_are_read(tokenizer: Tokenizer) -> None:
    text = "a<|user|>b<|endoftext|>"
    user, end = tokenizer.special_tokens["<|user|>"], tokenizer.end_of_text

    def found(policy: SpecialPolicy) -> set[int]:
        ids = tokenizer.encode(text, allow_special=policy)
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode_documents([text], allow_special=policy)[0].tolist() == ids
        return {user, end} & set(ids)

    assert found("all") == found(True) == found({"all"}) == {user, end}
    assert found("none") == found(False) == found(set()) == found({"none"}) == set()
    assert found({"<|user|>"}) == found("<|user|>") == {user}
    assert found(("raise", "<|user|>", "<|endoftext|>")) == {user, end}
    with pytest.raises(DataError, match=r"holds the special token '<\|user\|>' at character 1.*allow_special='all' as"):
        found("raise")
    with pytest.raises(DataError, match=r"holds the special token '<\|endoftext\|>' at character 10"):
        found(["raise", "<|user|>"])
    assert tokenizer.encode("plain", allow_special="raise") == tokenizer.encode("plain")
    with pytest.raises(DataError, match=r"allow_special='<\|usr\|>': is neither a policy .*did you mean '<\|user\|>'"):
        found({"<|usr|>"})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 259)))
def test_any_ids_decode(ids: list[int]) -> None:
    for tokenizer in LOSSLESS:
        tokenizer.decode(ids)
        table = [token or b"?" for token in tokenizer.token_bytes()]
        if not set(ids) & set(tokenizer.special_tokens.values()):
            assert tokenizer.decode_bytes(ids) == b"".join(table[index] for index in ids)


def test_the_byte_tokenizer() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.vocab_size == 257
    assert tokenizer.end_of_text == 256
    assert tokenizer.encode("é\0") == [0xC3, 0xA9, 0]
    assert tokenizer.token_bytes()[255:] == [b"\xff", b""]
    assert tokenizer.decode([0xC3]) == "\ufffd"
    assert tokenizer.decode(np.array([104, 105, 256])) == "hi" + END_OF_TEXT


def test_the_char_tokenizer() -> None:
    tokenizer = train_char(["héllo", " wörld 🙂"], name="c")
    assert tokenizer.vocab_size == len(set("héllo wörld 🙂")) + 1
    assert tokenizer.token_bytes()[:-1] == [c.encode() for c in sorted(set("héllo wörld 🙂"))]
    assert tokenizer.decode(tokenizer.encode("🙂 dröl")) == "🙂 dröl"
    with pytest.raises(DataError, match=r"'x' \(U\+0078\) at position 3"):
        tokenizer.encode("hélx")
    with pytest.raises(DataError, match=r"U\+1F600.* position 0"):
        tokenizer.encode_documents(["😀"])
    with pytest.raises(DataError, match="empty"):
        train_char([""], name="c")


def test_arrays_have_the_smallest_type_that_fits() -> None:
    assert BYTE.encode_documents(["x"])[0].dtype == np.uint16
    wide = char_tokenizer(map(chr, range(0x10000, 0x10000 + 70_000)), name="w")
    assert wide.encode_documents(["𐀀"])[0].dtype == np.uint32
    narrow = char_tokenizer(map(chr, range(0x10000, 0x10000 + 65_535)), name="w")
    assert narrow.vocab_size == 65_536
    assert narrow.encode_documents(["𐀀"])[0].dtype == np.uint16


def test_threads_change_nothing() -> None:
    texts = [f"{text} {number}" for number in range(50) for text in TEXT]
    for tokenizer in LOSSLESS:
        one, four = (tokenizer.encode_documents(texts, threads=threads) for threads in (1, 4))
        assert [ids.tolist() for ids in one] == [ids.tolist() for ids in four]
    assert BYTE.encode_documents([]) == []


def test_ids_outside_and_half_characters_are_refused() -> None:
    for tokenizer in LOSSLESS:
        for bad in (tokenizer.vocab_size, -1):
            with pytest.raises(DataError, match=f"id {bad} is not in tokenizer"):
                tokenizer.decode([0, bad])
        for encode in (tokenizer.encode, lambda text, t=tokenizer: t.encode_documents([text])):
            with pytest.raises(DataError, match=r"U\+D83D, at character 2"):
                encode("ab\ud83d")


def test_the_hash_covers_what_decides_the_ids_and_nothing_else() -> None:
    again = train_bpe(TEXT, [310], name="other name", special_tokens=SPECIALS)[0]
    assert again.hash == GPT4_LIKE.hash
    different = [
        GPT2_LIKE,
        GROWN,
        BYTE,
        byte_tokenizer(),
        train_bpe(TEXT, [309], name="b", special_tokens=SPECIALS)[0],
        train_bpe(TEXT, [310], name="b", special_tokens=SPECIALS[::-1])[0],
    ]
    hashes = {tokenizer.hash for tokenizer in [GPT4_LIKE, *different]}
    assert len(hashes) == 7
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in hashes)
    # Fixed for ever: data sets and run folders store it.
    assert byte_tokenizer().hash == "37b84c0dec6b6e52"
