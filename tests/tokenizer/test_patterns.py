from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

import pytest
import regex
import tiktoken
from tokenizers import Regex, pre_tokenizers

from gptlab.errors import DataError
from gptlab.tokenizer import patterns, train_bpe
from gptlab.tokenizer.patterns import GPT2, GPT4, LONGEST_WHITESPACE_RUN, O200K, cut_long_whitespace, resolve_pattern

GPT4_PUBLISHED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ASSIGNED = [
    character
    for character in map(chr, (c for c in range(0x30000) if not 0xD800 <= c < 0xE000))
    if unicodedata.category(character) != "Cn"
]
"""Assigned in the Unicode of Python, which is older than the engines' (they disagree on what only some of
them know)."""


@pytest.mark.parametrize("context", ["a{}b 1", "'{}t", "1{}2", "!{}\n", "\n{} "])
def test_all_engines_cut_alike_around_every_character(context: str) -> None:
    text = "\u2028".join(map(context.format, ASSIGNED))
    for pattern in (GPT4, GPT2, O200K):
        oniguruma = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)
        assert [piece for piece, _ in oniguruma] == regex.findall(pattern, text)


def test_gpt4_cuts_as_published() -> None:
    tails = ["s", "S", "ſ", "t", "LL", "lL", "Ve", "rE", "M", "d", "x", "ll"]
    text = "".join(f"it'{a} ' {b}12345 {a}!?\r\n\n {b}\t 中{a}" for a in tails for b in tails)
    assert regex.findall(GPT4, text) == regex.findall(GPT4_PUBLISHED, text)


def test_names_and_expressions() -> None:
    assert resolve_pattern("gpt4") == GPT4
    assert resolve_pattern("gpt2") == GPT2
    assert resolve_pattern(r"\S+|\s") == r"\S+|\s"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("gpt5", "neither a name"),
        ("(", "does not compile"),
        (r"(?<name", "does not compile"),
        (r"\S*|\s", "matches the empty string"),
        (r"\p{L}+|\s+", r"it skips '\\x00' \(U\+0000\)"),
        (r"[^a]+", "skips 'a'"),
        (r"(\S+|\s)", "capturing group"),
    ],
)
def test_patterns_that_would_lose_text_or_fail(pattern: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        resolve_pattern(pattern)


def test_a_pattern_of_ones_own_is_obeyed() -> None:
    (tokenizer,) = train_bpe(["abc-abc-abc-" * 5], [259], name="t", pattern=r"[^-]+|-")
    assert [piece for _, piece in tokenizer.pieces("abc-abc")] == [b"abc", b"-", b"abc"]


def test_long_whitespace_is_cut_wherever_it_stands() -> None:
    limit = LONGEST_WHITESPACE_RUN
    for before in (0, 1, 777, limit // 2, limit - 1, limit + 3):
        for run in (limit, limit + 1, 2 * limit + 5, 3 * limit):
            text = "x" * before + " " * run + "y" * 10
            pieces = cut_long_whitespace(text)
            assert "".join(pieces) == text
            assert max(len(piece) - len(piece.strip()) for piece in pieces) <= limit
    ordinary = "word " * 100_000
    assert cut_long_whitespace(ordinary) == [ordinary]


def test_a_pattern_that_backtracks_too_much_is_an_error_of_one_line() -> None:
    pattern = r"(?:[a-z](?=[a-z]|$|\s))+|[\s\S]"
    (tokenizer,) = train_bpe(["abc " * 10], [258], name="t", pattern=pattern)
    with pytest.raises(DataError, match=r"gives up on a text of 3,000,000 characters[^\n]*$"):
        tokenizer.encode("a" * 3_000_000)


@pytest.mark.parametrize("text", [" " * 50_000 + "x", "a" + "\n" * 99_999 + "b", "x" + " \t\n" * 33_333 + "y"])
def test_long_blanks_below_the_limit_cost_one_look(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids are tiktoken's, and the search for runs looks at each character once: its matches do not overlap, and are
    whole runs (a search for a run of a given length looks at the rest of the run from each of its characters)."""
    (mine,) = train_bpe([" \n\n  \t x " * 50], [262], name="t")
    text += "word " * 20_000  # a short text is not looked at
    ranks = {token: index for index, token in enumerate(mine.token_bytes()) if token}
    theirs = tiktoken.Encoding("t", pat_str=GPT4, mergeable_ranks=ranks, special_tokens=mine.special_tokens)
    looked = []

    class Spy:
        def finditer(self, text: str) -> Iterator[re.Match[str]]:
            for found in re.finditer(r"\s+", text):
                looked.append(found.end() - found.start())
                yield found

    assert patterns._RUN.pattern == r"\s+"
    monkeypatch.setattr(patterns, "_RUN", Spy())
    assert mine.encode(text) == theirs.encode_ordinary(text)
    assert sum(looked) == sum(map(str.isspace, text))
