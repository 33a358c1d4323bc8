"""Making tokenizers from a stream of text.

Byte-pair encoding on bytes, within the pre-tokens that a split pattern cuts; `merging` says exactly what a merge is.
Training from the 256 bytes and growing a tokenizer are one thing, begun at different places: the pre-tokens are counted
(`counting`), cut into the tokens that there are, and merged on (`merging`). What has been found is kept in a `Journal`,
so that a training that was stopped goes on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gptlab.console import progress, waiting
from gptlab.errors import DataError, option
from gptlab.tokenizer.byte_level import readable, recover_merges
from gptlab.tokenizer.core import Tokenizer, char_tokenizer, check_special_tokens, with_special_tokens
from gptlab.tokenizer.counting import TextCounts, checked_text, count_pretokens
from gptlab.tokenizer.engines import BpeEngine
from gptlab.tokenizer.journal import Journal
from gptlab.tokenizer.merging import frequent_merges
from gptlab.tokenizer.patterns import resolve_pattern

_LARGEST_VOCABULARY = 1 << 24
_SHOWN_EVERY = 0.1  # seconds between two merges that are shown


def train_bpe(
    texts: Iterable[str],
    vocab_sizes: Sequence[int],
    *,
    name: str,
    pattern: str = "gpt4",
    special_tokens: Sequence[str] = (),
    workers: int = 1,
    journal: Journal | None = None,
) -> list[Tokenizer]:
    """Byte-pair tokenizers of `vocab_sizes` from one pass over `texts`, smallest first.

    Each has the 256 bytes as ids 0..255, then merges, then END_OF_TEXT and `special_tokens`; sizes count all of these,
    and the merges of one are the first merges of the next. Memory grows with the number of distinct pre-tokens (and the
    longest document), not with the text.

    Args:
        texts: documents; consumed once, and not at all where the journal has counted them.
        name: name of the tokenizer; with several sizes, NAME-SIZE.
        pattern: "gpt4", "gpt2", "o200k" or a regular expression (see `patterns.resolve_pattern`).
        workers: processes that count. The result is the same for any number; several want a script to have the usual
            `if __name__ == "__main__":`.
        journal: where it is kept what has been found, and taken up again (see `journal.kept_journal`).

    Raises DataError for a size too small for the bytes and specials, a text too small for the size, an empty text.
    """
    specials = check_special_tokens(special_tokens)
    smallest = 256 + len(specials) + 1
    sizes = _check_sizes(vocab_sizes, smallest=smallest, what="256 bytes")
    expression = resolve_pattern(pattern)
    journal = journal or Journal()
    journal.begin(expression)
    wanted = sizes[-1] - len(specials)
    tokens = _learn([bytes([value]) for value in range(256)], texts, expression, wanted, journal, workers)
    _check_reached(
        journal.counts, len(tokens), wanted, sizes[-1], smallest=smallest, instead=f"take {option('kind', 'byte')}"
    )
    return [
        with_special_tokens(
            _nested_name(name, size, sizes),
            "bpe",
            tokens[: size - len(specials)],
            specials,
            pattern=expression,
            trained_on=_summary(journal.counts),
        )
        for size in sizes
    ]


def train_char(texts: Iterable[str], *, name: str, special_tokens: Sequence[str] = ()) -> Tokenizer:
    """A char tokenizer of the code points in `texts`. Raises DataError where there are none."""
    read = TextCounts()
    characters: set[str] = set()
    for number, text in enumerate(texts):
        read.documents, read.bytes = number + 1, read.bytes + checked_text(text, number).bytes
        characters.update(text)
    tokenizer = char_tokenizer(characters, name=name, special_tokens=special_tokens)
    tokenizer.trained_on = _summary(read)
    return tokenizer


def grow_bpe(
    base: Tokenizer,
    texts: Iterable[str],
    vocab_sizes: Sequence[int],
    *,
    name: str,
    special_tokens: Sequence[str] = (),
    workers: int = 1,
    journal: Journal | None = None,
) -> list[Tokenizer]:
    """`base` with more merges, learned from `texts` after `base`'s own; every id of `base` keeps its meaning.

    The new merges come after all ids of `base` (its special tokens included), new `special_tokens` after those.
    Training continues where `base`'s left off, so growing on the same text gives the merges that a larger training
    gives. `workers` and `journal` are as in `train_bpe`.

    Raises DataError where `base` is not of kind "bpe", a size is not larger than it, or the text is too small.
    """
    import regex  # type: ignore[import-untyped]

    if base.kind != "bpe" or base.pattern is None:
        raise DataError(f"tokenizer {base.name!r} is of kind {base.kind!r}; only bpe tokenizers can grow")
    added = [text for text in special_tokens if text not in base.special_tokens]
    check_special_tokens(added)
    smallest = base.vocab_size + len(added) + 1
    sizes = _check_sizes(vocab_sizes, smallest=smallest, what=f"the {base.vocab_size:,} ids of {base.name!r}")
    if regex.compile(base.pattern).groups:
        raise DataError(f"the pattern of {base.name!r} has capturing groups; only one without can grow")
    if recover_merges(base.token_bytes()) is None:
        raise DataError(f"tokenizer {base.name!r} cannot grow: its tokens are not merges in id order")
    journal = journal or Journal()
    journal.begin(base.pattern, base.hash)
    wanted = sizes[-1] - len(added)
    tokens = _learn(base.token_bytes(), texts, base.pattern, wanted, journal, workers)
    _check_reached(
        journal.counts, len(tokens), wanted, sizes[-1], smallest=smallest, instead=f"keep {base.name!r} as it is"
    )
    trained_on = {**_summary(journal.counts), "grown_from": {"name": base.name, "hash": base.hash}}
    grown = []
    for size in sizes:
        kept = tokens[: size - len(added)]
        ids = base.special_tokens | {text: len(kept) + index for index, text in enumerate(added)}
        grown.append(
            Tokenizer(
                _nested_name(name, size, sizes),
                "bpe",
                [*kept, *[b""] * len(added)],
                ids,
                end_of_text=base.end_of_text_token,
                document_end=base.document_end_token,
                stop_tokens=base.stop_tokens,
                pattern=base.pattern,
                trained_on=trained_on,
                config=base.config,
            )
        )
    return grown


def _learn(
    base: list[bytes], texts: Iterable[str], pattern: str, wanted: int, journal: Journal, workers: int
) -> list[bytes]:
    """The tokens of `base` (`b""` for special ones), and merges of `texts` until there are `wanted` ids, or no pair.

    What the journal has found already is taken from it, and what is found goes there.
    """
    if not journal.counts.is_whole:
        for _ in count_pretokens(texts, pattern, journal.counts, workers=workers):
            journal.keep()
    tokens = list(base)
    for left, right in journal.merges[: max(0, wanted - len(base))]:
        tokens.append(tokens[left] + tokens[right])
    if len(tokens) >= wanted:
        return tokens
    counts = journal.counts.counts
    with waiting("counting pairs"):
        words = _cut(counts, tokens)
        weights = np.fromiter(counts.values(), dtype=np.int64, count=len(counts))
        merges = frequent_merges(words, weights, len(tokens))
        first = next(merges, None)
    with progress(unit="merges", transient=True) as bar:
        task = bar.add_task("merging", total=wanted - len(base), completed=len(tokens) - len(base))
        shown = 0.0
        for left, right, times in [] if first is None else itertools.chain([first], merges):
            tokens.append(tokens[left] + tokens[right])
            journal.merges.append((left, right))
            if (now := time.monotonic()) - shown >= _SHOWN_EVERY or len(tokens) == wanted:
                made = f"merging '{readable(tokens[left])}' + '{readable(tokens[right])}' ({times:,} times)"
                bar.update(task, description=made, completed=len(tokens) - len(base))
                shown = now
                journal.keep()
            if len(tokens) == wanted:
                break
    return tokens


def _cut(words: Iterable[str], tokens: list[bytes]) -> list[npt.NDArray[Any]]:
    """Words as the ids that the merges of `tokens` leave of them, which is what they were when those had been made."""
    if len(tokens) == 256:
        return [np.frombuffer(word.encode("utf-8"), dtype=np.uint8) for word in words]
    # Each word is cut out already: a pattern that takes all of it keeps it in one piece.
    specials = {f"<{index}>": index for index, token in enumerate(tokens) if not token}
    engine = BpeEngine(tokens, specials, r"[\s\S]+")
    return [engine.encode_array(word) for word in words]


def _summary(read: TextCounts) -> dict[str, Any]:
    return {"texts": read.documents, "bytes": read.bytes}


def _nested_name(name: str, size: int, sizes: Sequence[int]) -> str:
    return f"{name}-{size}" if len(sizes) > 1 else name


def _check_sizes(sizes: Sequence[int], *, smallest: int, what: str) -> list[int]:
    ordered = sorted(set(sizes))
    if not ordered:
        raise DataError(f"no vocabulary size is given; add {option('vocab_size', 'N')}")
    if ordered[0] < smallest:
        raise DataError(
            f"a vocabulary of {ordered[0]:,} is too small: {what}, the special tokens and one merge make {smallest:,}"
        )
    if ordered[-1] > _LARGEST_VOCABULARY:
        raise DataError(f"a vocabulary of {ordered[-1]:,} is too large: {_LARGEST_VOCABULARY:,} at most")
    return ordered


def _check_reached(read: TextCounts, reached: int, wanted: int, asked: int, *, smallest: int, instead: str) -> None:
    if read.bytes == 0:
        raise DataError(f"the training text is empty; check {option('input')}")
    if reached < wanted:
        largest = asked - (wanted - reached)
        fix = f"the largest vocabulary it gives is {largest:,}; give more text, or {option('vocab_size', largest)}"
        if largest < smallest:  # no merge at all
            fix = f"it has none; give more text, or {instead}"
        raise DataError(f"the training text ({read.bytes:,} bytes) runs out of pairs to merge: {fix}")
