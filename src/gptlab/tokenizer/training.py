"""Making tokenizers from a stream of text.

Byte-pair encoding (Sennrich, Haddow and Birch, 2016, https://arxiv.org/abs/1508.07909), on bytes, within the
pre-tokens that a split pattern cuts. What a merge is, exactly, since implementations differ:

* the count of a pair is the number of its occurrences in the text, overlapping ones included: `aaaa` has
  three `aa`;
* the most frequent pair is merged; among equally frequent ones the one with the smallest left id, then right
  id;
* its occurrences are replaced from left to right without overlap (`aaaaa` → `aa aa a`), and counts are again
  those of the text that results.

`rustbpe` and growing do exactly this, whatever the number of threads. `tokenizers` differs in ties only: it
numbers the bytes in the order of GPT-2's byte alphabet (printable ASCII first), so among equally frequent pairs it may
pick another.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gptlab.errors import DataError, option
from gptlab.tokenizer.byte_level import byte_alphabet, recover_merges
from gptlab.tokenizer.core import Tokenizer, char_tokenizer, check_special_tokens, with_special_tokens
from gptlab.tokenizer.engines import is_rust_panic
from gptlab.tokenizer.patterns import cut_long_whitespace, resolve_pattern

TRAINERS = ("rustbpe", "tokenizers")

_BUFFER_TEXTS = 1024
_BUFFER_BYTES = 8 << 20
_LARGEST_VOCABULARY = 1 << 24
_COUNT_LIMIT = (1 << 31) - 1
_FREE_BYTES = 1 << 30

Integers = npt.NDArray[np.int64]


class _CountedTexts:
    """An iterator over texts that counts documents and bytes, and cuts long runs of whitespace.

    Raises DataError for text that is no Unicode.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.documents = 0
        self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            try:
                self.bytes += len(text) if text.isascii() else len(text.encode("utf-8"))
            except UnicodeEncodeError as error:
                raise DataError(
                    f"document {self.documents:,} of the training text is not valid Unicode: half a"
                    f" surrogate pair at character {error.start:,}"
                ) from None
            self.documents += 1
            yield from cut_long_whitespace(text)

    def summary(self) -> dict[str, Any]:
        return {"texts": self.documents, "bytes": self.bytes}


def train_bpe(
    texts: Iterable[str],
    vocab_sizes: Sequence[int],
    *,
    name: str,
    pattern: str = "gpt4",
    special_tokens: Sequence[str] = (),
    trainer: str = "rustbpe",
) -> list[Tokenizer]:
    """Byte-pair tokenizers of `vocab_sizes` from one pass over `texts`, smallest first.

    Each has the 256 bytes as ids 0..255, then merges, then END_OF_TEXT and `special_tokens`; sizes count all of these,
    and the merges of one are the first merges of the next. Memory grows with the number of distinct pre-tokens (and the
    longest document), not with the text.

    Args:
        texts: documents; consumed once.
        name: name of the tokenizer; with several sizes, NAME-SIZE.
        pattern: "gpt4", "gpt2" or a regular expression (see `patterns.resolve_pattern`).
        trainer: "rustbpe" or "tokenizers"; they differ in ties (see the module's text).

    Raises DataError for a size too small for the bytes and specials, a text too small for the size, an empty text.
    """
    specials = check_special_tokens(special_tokens)
    smallest = 256 + len(specials) + 1
    sizes = _check_sizes(vocab_sizes, smallest=smallest, what="256 bytes")
    expression = resolve_pattern(pattern)
    stream = _CountedTexts(texts)
    wanted = sizes[-1] - len(specials)
    if trainer == "rustbpe":
        tokens = _train_rustbpe(stream, wanted, expression)
    elif trainer == "tokenizers":
        tokens = _train_tokenizers(stream, wanted, expression)
    else:
        raise DataError(f"no trainer {trainer!r}; valid: {', '.join(TRAINERS)}")
    _check_reached(stream, len(tokens), wanted, sizes[-1], smallest=smallest, instead=f"take {option('kind', 'byte')}")
    trained_on = {**stream.summary(), "trainer": trainer}
    return [
        with_special_tokens(
            _nested_name(name, size, sizes),
            "bpe",
            tokens[: size - len(specials)],
            specials,
            pattern=expression,
            trained_on=trained_on,
        )
        for size in sizes
    ]


def train_char(texts: Iterable[str], *, name: str, special_tokens: Sequence[str] = ()) -> Tokenizer:
    """A char tokenizer of the code points in `texts`. Raises DataError where there are none."""
    stream = _CountedTexts(texts)
    characters: set[str] = set()
    for text in stream:
        characters.update(text)
    tokenizer = char_tokenizer(characters, name=name, special_tokens=special_tokens)
    tokenizer.trained_on = stream.summary()
    return tokenizer


def grow_bpe(
    base: Tokenizer,
    texts: Iterable[str],
    vocab_sizes: Sequence[int],
    *,
    name: str,
    special_tokens: Sequence[str] = (),
) -> list[Tokenizer]:
    """`base` with more merges, learned from `texts` after `base`'s own; every id of `base` keeps its meaning.

    The new merges come after all ids of `base` (its special tokens included), new `special_tokens` after those.
    Training continues where `base`'s left off, so growing on the same text gives the merges that a larger training
    gives.

    Raises DataError where `base` is not of kind "bpe", a size is not larger than it, or the text is too small.
    """
    import regex  # type: ignore[import-untyped]

    if base.kind != "bpe" or base.pattern is None:
        raise DataError(f"tokenizer {base.name!r} is of kind {base.kind!r}; only bpe tokenizers can grow")
    added = [text for text in special_tokens if text not in base.special_tokens]
    check_special_tokens(added)
    smallest = base.vocab_size + len(added) + 1
    sizes = _check_sizes(vocab_sizes, smallest=smallest, what=f"the {base.vocab_size:,} ids of {base.name!r}")
    compiled = regex.compile(base.pattern)
    if compiled.groups:
        raise DataError(f"the pattern of {base.name!r} has capturing groups; only one without can grow")
    stream = _CountedTexts(texts)
    counts: Counter[str] = Counter()
    for text in stream:
        counts.update(compiled.findall(text))
    wanted = sizes[-1] - base.vocab_size - len(added)
    old = base.token_bytes()
    merges = _continue_merges(base, counts, wanted)
    tokens = list(old)
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    reached = (len(tokens), base.vocab_size + wanted, sizes[-1])
    _check_reached(stream, *reached, smallest=smallest, instead=f"keep {base.name!r} as it is")
    trained_on = {
        **stream.summary(),
        "trainer": "gptlab",
        "grown_from": {"name": base.name, "hash": base.hash},
    }
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


def _check_reached(
    stream: _CountedTexts, reached: int, wanted: int, asked: int, *, smallest: int, instead: str
) -> None:
    if stream.bytes == 0:
        raise DataError(f"the training text is empty; check {option('input')}")
    if reached < wanted:
        largest = asked - (wanted - reached)
        fix = f"the largest vocabulary it gives is {largest:,}; give more text, or {option('vocab_size', largest)}"
        if largest < smallest:  # no merge at all
            fix = f"it has none; give more text, or {instead}"
        raise DataError(f"the training text ({stream.bytes:,} bytes) runs out of pairs to merge: {fix}")


# rustbpe


def _train_rustbpe(stream: _CountedTexts, size: int, pattern: str) -> list[bytes]:
    """The bytes of ids 0..size-1 (fewer where the text runs out of pairs)."""
    import rustbpe

    engine = rustbpe.Tokenizer()
    try:
        engine.train_from_iterator(_batched(stream), size, buffer_size=_BUFFER_TEXTS, pattern=pattern)
    except BaseException as error:
        if not is_rust_panic(error):
            raise
        raise DataError(f"the split pattern gives up on a document of the training text: {error}") from None
    return [bytes(token) for token, _ in engine.get_mergeable_ranks()]


def _batched(stream: _CountedTexts) -> Iterator[str]:
    """`stream`, with empty texts such that rustbpe's buffer, which counts texts, never holds much over 8 MiB.

    rustbpe also counts in 32 bits and would wrap silently. A pair is no more frequent than the commonest byte, which is
    therefore counted, from the first GiB on (before that nothing can wrap).
    """
    waiting = waiting_bytes = 0
    bytes_seen: Integers = np.zeros(256, dtype=np.int64)
    for text in stream:
        yield text
        waiting, waiting_bytes = waiting + 1, waiting_bytes + 4 * len(text)
        if stream.bytes > _FREE_BYTES:
            bytes_seen += np.bincount(np.frombuffer(text.encode("utf-8"), dtype=np.uint8), minlength=256)
            if bytes_seen.max() > _COUNT_LIMIT - _FREE_BYTES:
                raise DataError(
                    f"rustbpe counts in 32 bits, too few for more than these {stream.bytes / 1e9:.1f} GB of"
                    f" text; use {option('limit_bytes')} (a tokenizer needs no more)"
                )
        if waiting_bytes > 4 * _BUFFER_BYTES:
            yield from [""] * (_BUFFER_TEXTS - waiting)
            waiting = _BUFFER_TEXTS
        if waiting == _BUFFER_TEXTS:
            waiting = waiting_bytes = 0


# Hugging Face tokenizers


def _train_tokenizers(stream: _CountedTexts, size: int, pattern: str) -> list[bytes]:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=0, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    engine.train_from_iterator(iter(stream), trainer)
    byte_of = {character: value for value, character in enumerate(byte_alphabet())}
    tokens = [bytes([value]) for value in range(256)]
    for left, right in json.loads(engine.to_str())["model"]["merges"]:
        tokens.append(bytes(byte_of[character] for character in left + right))
    return tokens


# Growing


def _continue_merges(base: Tokenizer, counts: Counter[str], wanted: int) -> list[tuple[int, int]]:
    """The next `wanted` merges after `base`'s own, as pairs of ids, over pre-tokens with these `counts`."""
    if recover_merges(base.token_bytes()) is None:
        raise DataError(f"tokenizer {base.name!r} cannot grow: its tokens are not merges in id order")
    # Each pre-token is already cut: a pattern that takes all of it keeps it in one piece.
    whole = Tokenizer(
        "whole",
        "bpe",
        base.token_bytes(),
        base.special_tokens,
        pattern=r"[\s\S]+",
        end_of_text=base.end_of_text_token,
    )
    words = whole.encode_documents(list(counts))
    weights = np.fromiter(counts.values(), dtype=np.int64, count=len(counts))
    return _merge_by_frequency(words, weights, base.vocab_size, wanted)


def _merge_by_frequency(
    words: Sequence[npt.NDArray[Any]], weights: Integers, first_id: int, wanted: int
) -> list[tuple[int, int]]:
    """Up to `wanted` merges of byte-pair encoding over `words` (arrays of ids) that occur `weights` times each.

    All words lie in one array with -1 around each, linked to their neighbours, and each pair knows where it may occur,
    so a merge touches only its occurrences. Counts in the heap are upper bounds (a pair only loses occurrences once
    both its ids exist) and are corrected when they come to the top.
    """
    lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    symbols: Integers = np.full(int(lengths.sum()) + len(words) + 1, -1, dtype=np.int64)
    inside = np.ones(len(symbols), dtype=bool)
    inside[np.concatenate([[0], np.cumsum(lengths + 1)])] = False
    if words:
        symbols[inside] = np.concatenate(words)
    weight_at: Integers = np.zeros(len(symbols), dtype=np.int64)
    weight_at[inside] = np.repeat(weights, lengths)
    after: Integers = np.arange(1, len(symbols) + 1, dtype=np.int64)
    after[-1] = len(symbols) - 1
    before: Integers = np.arange(-1, len(symbols) - 1, dtype=np.int64)
    before[0] = 0

    def pairs_at(positions: Integers) -> Iterator[tuple[int, int, Integers]]:
        """(pair as one number, its weighted count, its positions) for the pairs that start at `positions`."""
        left, right = symbols[positions], symbols[after[positions]]
        valid = (left >= 0) & (right >= 0)
        positions, keys = positions[valid], (left[valid] << 32) | right[valid]
        order = np.argsort(keys, kind="stable")
        positions, keys = positions[order], keys[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        if len(starts) == 0:
            return
        sums = np.add.reduceat(weight_at[positions], starts)
        yield from zip(keys[starts].tolist(), sums.tolist(), np.split(positions, starts[1:]), strict=True)

    count: dict[int, int] = {}
    places: dict[int, Integers] = {}
    for key, total, positions in pairs_at(np.flatnonzero(inside)):
        count[key], places[key] = total, positions
    heap = [(-total, key) for key, total in count.items()]
    heapq.heapify(heap)
    merges: list[tuple[int, int]] = []
    while heap and len(merges) < wanted:
        bound, key = heapq.heappop(heap)
        if count[key] != -bound:
            if count[key] > 0:
                heapq.heappush(heap, (-count[key], key))
            continue
        left_id, right_id = key >> 32, key & 0xFFFFFFFF
        at = places.pop(key)
        at = at[(symbols[at] == left_id) & (symbols[after[at]] == right_id)]
        if left_id == right_id:
            at = _without_overlap(at, after)
        second = after[at]
        for old, total, _ in pairs_at(np.unique(np.concatenate([before[at], at, second]))):
            count[old] -= total
        symbols[at], symbols[second] = first_id + len(merges), -2
        after[at] = after[second]
        before[after[at]] = at
        for new, total, positions in pairs_at(np.unique(np.concatenate([before[at], at]))):
            count[new], places[new] = total, positions
            heapq.heappush(heap, (-total, new))
        merges.append((left_id, right_id))
    return merges


def _without_overlap(at: Integers, after: Integers) -> Integers:
    """Of the ascending positions `at` of a pair of twins, those that merging from left to right takes: in each run of
    touching ones the first, the third, the fifth…"""
    index = np.arange(len(at))
    starts = np.ones(len(at), dtype=bool)
    starts[1:] = after[at[:-1]] != at[1:]
    taken: Integers = at[(index - np.maximum.accumulate(np.where(starts, index, 0))) % 2 == 0]
    return taken
