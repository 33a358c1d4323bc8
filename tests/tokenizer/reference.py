"""Byte-pair encoding as slowly and plainly as it can be written: what the fast trainers are compared with."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

import regex

# As published (cl100k_base), not as gptlab writes it.
GPT4_PUBLISHED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def replace_pair(word: Sequence[int], pair: tuple[int, int], new: int) -> list[int]:
    out: list[int] = []
    position = 0
    while position < len(word):
        if tuple(word[position : position + 2]) == pair:
            out.append(new)
            position += 2
        else:
            out.append(word[position])
            position += 1
    return out


def train(texts: Iterable[str], size: int, pattern: str, byte_order: Sequence[int] = range(256)) -> list[bytes]:
    """The tokens 0..size-1. Everything is counted anew for every merge; ties go to the smallest pair of
    numbers, where `byte_order[n]` is the byte with number n."""
    number_of = {byte: number for number, byte in enumerate(byte_order)}
    counts = Counter(match.group() for text in texts for match in regex.finditer(pattern, text))
    words = {text: [number_of[byte] for byte in text.encode("utf-8")] for text in counts}
    tokens = [bytes([byte]) for byte in byte_order]
    while len(tokens) < size:
        pairs: Counter[tuple[int, int]] = Counter()
        for text, word in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += counts[text]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        words = {text: replace_pair(word, best, len(tokens)) for text, word in words.items()}
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return [bytes([byte]) for byte in range(256)] + tokens[256:]


def encode(text: str, tokens: Sequence[bytes], pattern: str) -> list[int]:
    """Ids of `text`: in each pre-token, the two neighbours whose union has the smallest id, again and
    again."""
    ids = {token: index for index, token in enumerate(tokens) if token}
    out: list[int] = []
    for match in regex.finditer(pattern, text):
        parts = [bytes([byte]) for byte in match.group().encode("utf-8")]
        while len(parts) > 1:
            ranked = [(ids.get(a + b, len(tokens)), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
            rank, at = min(ranked)
            if rank == len(tokens):
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        out.extend(ids[part] for part in parts)
    return out
