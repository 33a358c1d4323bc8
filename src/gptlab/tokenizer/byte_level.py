"""Byte-level BPE: bytes as characters, as GPT-2 writes them and as people read them, and a vocabulary's merges."""

from __future__ import annotations

import functools
import itertools


@functools.cache
def byte_alphabet() -> tuple[str, ...]:
    """The character for each byte, as in GPT-2's `encoder.json`: printable Latin-1 stays, the rest moves to U+0100…"""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [value for value in range(256) if value not in kept]
    table = {value: chr(value) for value in kept} | {value: chr(256 + i) for i, value in enumerate(moved)}
    return tuple(table[value] for value in range(256))


@functools.cache
def _alphabet_bytes() -> dict[str, int]:
    return {character: value for value, character in enumerate(byte_alphabet())}


def to_text(token: bytes) -> str:
    """A token as a vocabulary file writes it."""
    return "".join(map(byte_alphabet().__getitem__, token))


def from_text(text: str) -> bytes | None:
    """The bytes that `text` is written for, or None where it holds a character outside the byte alphabet."""
    values = [_alphabet_bytes().get(character) for character in text]
    return None if None in values else bytes(values)  # type: ignore[arg-type]


def readable(token: bytes, wrap: bool = False) -> str:
    """A token's bytes as people can read them: text where it is text, \\x.. where it is part of a character.

    A line end is ⏎; `wrap`: and a new line.
    """
    text = token.decode("utf-8", errors="backslashreplace")
    shown = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return shown.replace("\n", "⏎\n" if wrap else "⏎")


def recover_merges(tokens: list[bytes]) -> list[tuple[int, int]] | None:
    """The merges, as pairs of ids in rank order, that make `tokens` (by id; `b""` is skipped), or None if none do.

    While a token is trained no merge crosses its ends, so encoding its bytes with the merges before it gives exactly
    the two parts it was made of. Where that fails, the vocabulary is not the result of byte-pair merges in id order.
    """
    ranks = {token: index for index, token in enumerate(tokens) if token}
    if len(ranks) != sum(map(bool, tokens)) or any(bytes([value]) not in ranks for value in range(256)):
        return None
    merges = []
    for token, rank in ranks.items():
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [ranks.get(left + right, rank) for left, right in itertools.pairwise(parts)]
            best = min(joined)
            if best >= rank:
                return None
            at = joined.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        merges.append((ranks[parts[0]], ranks[parts[1]]))
    return merges
