"""Split patterns: how text is cut into pre-tokens before byte-pair encoding. Merges never cross a cut.

A pattern is read by three regular-expression engines (tiktoken uses Rust's fancy-regex, `tokenizers` uses Oniguruma,
training uses Python's `regex`), so those of the house are written in the dialect in which all of them agree: no `$` (a
line end in Oniguruma), no `{1,3}+` (possessive in two of them, a nested repeat in Oniguruma), no `(?i:…)` (the engines
fold different sets of characters).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from gptlab.errors import DataError, option

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern of GPT-2 (Radford et al., 2019), as in OpenAI's `encoder.py`."""

GPT4 = (
    r"'(?:[sSſdDmMtT]|[lL]{2}|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
"""The cuts of GPT-4 (`cl100k_base` in tiktoken): contractions in either case (ſ is what `(?i:s)` also
matches), at most three digits, punctuation with the line ends that follow it."""

_CONTRACTION = r"(?:'(?:[sSſdDmMtT]|[lL]{2}|[vV][eE]|[rR][eE]))?"
_LOWER, _UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The cuts of GPT-4o (`o200k_base` in tiktoken): words end where small letters go over into capitals, marks belong to
words, and contractions to the word before."""

NAMES = {"gpt4": GPT4, "gpt2": GPT2, "o200k": O200K}

LONGEST_WHITESPACE_RUN = 100_000
"""Longer runs of whitespace are cut: fancy-regex keeps a state a character for `\\s+(?!\\S)` and gives up at
a million."""

_RUN = re.compile(r"\s+")
_STRIDE = LONGEST_WHITESPACE_RUN // 2


def resolve_pattern(pattern: str) -> str:
    """The pattern called `pattern` (`gpt4`, `gpt2`, `o200k`), or `pattern` itself where it is an expression that works.

    A pattern works when fancy-regex and Oniguruma accept it, it never matches the empty string, and every character of
    Unicode is matched by it, alone and between letters: what a pattern leaves out would vanish from the text.

    Raises DataError naming what is wrong with it.
    """
    if pattern in NAMES:
        return NAMES[pattern]
    if not re.search(r"[\\\[\].+*?|(){}^]", pattern):
        raise DataError(f"{option('pattern', pattern)} is neither a name ({', '.join(NAMES)}) nor a regular expression")
    import regex  # type: ignore[import-untyped]
    import tiktoken
    from tokenizers import Regex

    byte_ranks = {bytes([value]): value for value in range(256)}
    try:
        Regex(pattern)
        compiled = regex.compile(pattern)
        probe = tiktoken.Encoding("probe", pat_str=pattern, mergeable_ranks=byte_ranks, special_tokens={})
    except Exception as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{option('pattern', pattern)} does not compile: {first_line}") from error
    if compiled.groups:
        raise DataError(f"{option('pattern', pattern)} has a capturing group; write (?:…) instead of (…)")
    if compiled.match("") is not None:
        raise DataError(f"{option('pattern', pattern)} matches the empty string; replace a * by + so that it cannot")
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for text in ("\n".join(characters), "a".join(characters), "".join(characters)):
        if probe.decode(probe.encode_ordinary(text)) != text:
            lost = next((c for c in characters if not probe.encode_ordinary(c)), "")
            which = f"it skips {lost!r} (U+{ord(lost):04X})" if lost else "it skips characters inside words"
            raise DataError(f"{option('pattern', pattern)} does not match all text: {which}; end it with |[\\s\\S]")
    return pattern


def cut_long_whitespace(text: str) -> list[str]:
    """`text` cut such that no run of whitespace exceeds `LONGEST_WHITESPACE_RUN` characters; usually `[text]`.

    Looking at one character in every half run is enough to rule a long run out, so the common case costs nothing.
    """
    if len(text) < LONGEST_WHITESPACE_RUN:
        return [text]
    for position in range(0, len(text), _STRIDE):
        if text[position].isspace() and text[position : position + _STRIDE].isspace():
            return list(_cut_runs(text))
    return [text]


def _cut_runs(text: str) -> Iterator[str]:
    """`text` cut at the start of each run that is too long, and in it every `LONGEST_WHITESPACE_RUN` characters.

    Whole runs are matched and then measured: to search for a run of so many characters takes a run's length at each of
    its characters, which is quadratic just where it finds none.
    """
    done = 0
    for run in _RUN.finditer(text):
        whole, start = (run.end() - run.start()) // LONGEST_WHITESPACE_RUN, run.start()
        if whole:
            cuts = [start + LONGEST_WHITESPACE_RUN * number for number in range(whole + 1)]
            yield from (piece for piece in (text[a:b] for a, b in itertools.pairwise([done, *cuts])) if piece)
            done = cuts[-1]
    if done < len(text):
        yield text[done:]
