"""What a number of a run was read from: the identity of the value, beside that of the run.

The hash in a run's name says how its weights came about. What was measured of them depends on more: the text that they
were tried on, how much of it, the tokenizer, the questions, the code that counts. Two values are compared only where
all of that is equal; where it is not known (a run of gptlab before 0.4), that is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

What = TypeVar("What")

Identity = dict[str, str]
"""What a value was read from, by name, in words that can be shown."""

SCORER = "1"
"""The version of `inference.scoring`: raised when it comes to another number for the same weights and text."""

ALL, TEXT = "all", "validation text"


def validation_identity(
    fingerprints: Mapping[str, str],
    sizes: Mapping[str, tuple[int | None, int | None]],
    *,
    tokens: int | None,
    length: int,
    tokenizer: str,
) -> Identity:
    """That of a run's own validation.

    Args:
        fingerprints: of the ids of each validation split, by source.
        sizes: of each its documents and the bytes of their text; None where that is not known.
        tokens: `eval.tokens`.
        length: tokens of a window.
        tokenizer: its hash.
    """
    known = [(documents, size) for documents, size in sizes.values() if documents is not None and size is not None]
    text = f"{sum(d for d, _ in known):,} documents of {sum(size for _, size in known):,} bytes"
    return {
        **data_identity(fingerprints),
        **({TEXT: text} if len(known) == len(sizes) else {}),
        "eval.tokens": ALL if tokens is None else str(tokens),
        "window": f"{length} tokens",
        "tokenizer": tokenizer[:12],
        "scorer": SCORER,
    }


def differences(one: Identity, other: Identity, *, by_byte: bool = False) -> list[str]:
    """`validation data ab12 against cd34`, for everything in which two identities differ. What one of them alone knows
    is no difference.

    `by_byte`: the values are counted by the byte, so that two tokenizers may be compared where both read the same text
    to its end. That it is the same is told by the number of its documents and bytes.
    """
    names = [name for name in one if name in other]
    whole = by_byte and TEXT in names and one["eval.tokens"] == other["eval.tokens"] == ALL
    if whole and one["tokenizer"] != other["tokenizer"]:
        names = [name for name in names if name not in ("validation data", "tokenizer")]
    return [f"{name} {one[name]} against {other[name]}" for name in names if one[name] != other[name]]


def unlike_pair(
    measured: Iterable[tuple[What, Identity | None]], *, by_byte: bool = False
) -> tuple[What, What, str] | None:
    """The first of what was measured that was read from something else than the first whose identity is known, that
    first, and in what they differ; None where all were read from the same."""
    first: tuple[What, Identity] | None = None
    for what, identity in measured:
        if identity is None:
            continue
        if first is None:
            first = what, identity
        elif changed := differences(identity, first[1], by_byte=by_byte):
            return what, first[0], changed[0]
    return None


def unlike_first(identities: Sequence[Identity | None], *, by_byte: bool = False) -> tuple[int, dict[str, list[int]]]:
    """The number of the first identity that is known, and the numbers of those that differ from it, by in what."""
    first = next((number for number, one in enumerate(identities) if one is not None), 0)
    unlike: dict[str, list[int]] = {}
    for number, one in enumerate(identities):
        reference = identities[first]
        if one is not None and reference is not None and (changed := differences(one, reference, by_byte=by_byte)):
            unlike.setdefault("; ".join(changed), []).append(number)
    return first, unlike


def data_identity(fingerprints: Mapping[str, str]) -> Identity:
    """The part of it that names the ids: digests by source, short enough to be read; a lone source without its name."""
    short = {name: digest[:12] for name, digest in sorted(fingerprints.items())}
    joined = " ".join(f"{name}:{digest}" for name, digest in short.items())
    return {"validation data": next(iter(short.values())) if len(short) == 1 else joined}
