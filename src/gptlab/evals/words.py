"""Two models on one text, word by word: which words the better one knows better.

Tokens of two tokenizers are not alike, and words are. What a token costs is spread evenly over its bytes, and a word
costs what its bytes do, with the blanks before it: so the costs of all words add up to that of the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptlab.console import track
from gptlab.errors import DataError
from gptlab.run import Run
from gptlab.shown import Sheet, Shown

_WORD = re.compile(r"\s*(?:\w+|[^\w\s]+)|\s+$")


@dataclass(frozen=True)
class Word:
    """A word, how often it stands in the texts, and what it costs each of two models on average, nats."""

    text: str
    count: int
    first: float
    second: float

    @property
    def gain(self) -> float:
        """By how much the second model knows it better, nats a time."""
        return self.first - self.second


@dataclass(frozen=True, repr=False)
class WordComparison(Shown):
    """Words of some texts, the one first whose total cost fell most from the first model to the second."""

    first: str
    second: str
    words: tuple[Word, ...]

    def sheet(self, most: int = 12) -> Sheet:
        """The `most` words at either end."""
        shown = self.words if len(self.words) <= 2 * most else [*self.words[:most], *self.words[-most:]]
        rows = [
            [
                repr(word.text)[1:-1],
                str(word.count),
                *(f"{x:.3f}" for x in (word.first, word.second)),
                f"{word.gain:+.3f}",
            ]
            for word in shown
        ]
        total = sum(word.count * word.gain for word in self.words)
        note = f"all {sum(word.count for word in self.words):,} words together: {total:+.1f} nats"
        header = ("word", "times", self.first, self.second, "gain")
        return Sheet(f"nats a word: what {self.second} knows better", rows, header, [note])


def compare_words(first: Run, second: Run, texts: Sequence[str]) -> WordComparison:
    """Every word of `texts` (each a document of its own), with what it costs both models.

    Raises DataError where a tokenizer changes text, so that its tokens cannot be found in it.
    """
    costs: dict[str, list[tuple[float, float]]] = {}
    for text in track(texts, "words", total=len(texts), unit="texts"):
        ours, theirs = (_by_byte(run, text) for run in (first, second))
        end = 0
        for match in _WORD.finditer(text):  # one after another, with nothing between them
            start, end = end, end + len(match[0].encode("utf-8"))
            costs.setdefault(match[0].strip(), []).append(
                (float(ours[start:end].sum()), float(theirs[start:end].sum()))
            )
    words = [Word(text, len(found), *np.mean(found, axis=0).tolist()) for text, found in costs.items()]
    words.sort(key=lambda word: -word.count * word.gain)
    names = [first.config.name, second.config.name]
    if names[0] == names[1]:
        names = ["first", "second"]
    return WordComparison(names[0], names[1], tuple(words))


def _by_byte(run: Run, text: str) -> NDArray[np.float64]:
    """What each byte of `text` costs, nats: (bytes,)."""
    if not run.tokenizer.keeps_text:
        raise DataError(f"{run.folder}: its tokenizer changes text, so that words cannot be found in its tokens")
    losses = run.token_losses(text)
    sizes = np.array([len(piece) for piece in losses.pieces])
    spread = np.repeat(np.array(losses.nats) / np.maximum(sizes, 1), sizes)
    return spread[len(spread) - len(text.encode("utf-8")) :]  # without a blank that the tokenizer put before the text
