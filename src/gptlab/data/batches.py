"""Batches as a pure function of (seed, step).

B rows of T+1 tokens a step, whoever asks: world size, micro-batch size, worker count and restarts play no part.

- A data set of M tokens has N = (M - T) // T windows of T+1 tokens an epoch. Each epoch shifts them by its
  own phase in [0, T), so that rows do not begin at the same places again, and goes through them in its own
  shuffled order (`permutation`).
- A data set's sample number n is window number shuffle(n mod N) of epoch n // N.
- Row r of the run (row b of step s is r = s B + b) goes to a data set by a golden-ratio sequence laid
  against the cumulated weights: the sequence is of low discrepancy (Kuipers and Niederreiter, "Uniform
  Distribution of Sequences", 1974, section 2.3), so shares are kept within a few rows all the time, not on
  average only. The row's sample number is the count of earlier rows that went to the same data set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gptlab.console import say
from gptlab.data.dataset import TokenDataset
from gptlab.data.permutation import hash64, permute
from gptlab.errors import ConfigError, DataError

IGNORE = -1

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd
_PHASE, _ORDER, _SHARE = 1, 2, 3  # what a hash of the seed is used for

Mix = Callable[[float], NDArray[np.float64]]


@dataclass(frozen=True)
class Batch:
    """Rows of one step.

    Attributes:
        inputs: (B, T) int64 token ids.
        targets: (B, T) int64, the token after each input; IGNORE where nothing is to be predicted.
        documents: (B, T) int32, number of the document that each input belongs to, from 0 in every row. An
            end-of-text token opens its document. All 0 where the data set does not know its end-of-text id.
        global_targets: targets other than IGNORE in the whole global batch, over all ranks: what the loss
            sum is to be divided by.
        extra: what else a stream of somebody's own gives to its loss, by name, each with B rows.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    documents: NDArray[np.int32]
    global_targets: int
    extra: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def rows(self, start: int, stop: int) -> Batch:
        """Rows `start` … `stop - 1`, of the same global batch."""
        part = slice(start, stop)
        extra = {name: array[part] for name, array in self.extra.items()}
        return Batch(self.inputs[part], self.targets[part], self.documents[part], self.global_targets, extra)


def micro_batches(batch: Batch, rows: int, length: int | None = None) -> Iterator[Batch]:
    """Cut a batch into slices of at most `rows` rows, in order; where its rows are not of `length` tokens, of as many
    rows as hold that many tokens, and of one at least."""
    width = batch.inputs.shape[1]
    at_once = max(1, rows * (length or width) // width)
    for start in range(0, len(batch.inputs), at_once):
        yield batch.rows(start, start + at_once)


class TokenStream(Protocol):
    """What the slot `stream` holds: the training batches of a run, each a function of its step.

    Whoever asks gets the same: no state may pass from one call to the next. `extra` of a batch carries to the loss
    whatever else an objective needs (masks, preferences, rewards).
    """

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The contiguous share of `rank` among `world_size` in the global batch of `step`, counted from 0."""


class BatchStream:
    """Next-token batches from one data set or a mixture of several, in windows, each epoch in an order of its own.

    Args:
        datasets: (name, data set) of each source.
        mix: weights of the sources at a progress in [0, 1], (len(datasets),): see `gptlab.data.mixture`.
        sequence_length: T.
        sequences_per_step: B, rows of the global batch.
        seed: decides shuffles, phases and which row goes to which source.
        total_steps: steps of the whole run; progress of step s is s / total_steps.
        epochs: how often a data set may be read at most; None for as often as it takes (which is said).

    Raises DataError where a data set is shorter than a sequence, or the run needs more epochs than allowed.
    """

    slot = "stream"

    def __init__(
        self,
        datasets: Sequence[tuple[str, TokenDataset]],
        mix: Mix,
        sequence_length: int,
        sequences_per_step: int,
        seed: int,
        total_steps: int,
        epochs: int | None,
    ) -> None:
        self.names = [name for name, _ in datasets]
        self.datasets = [dataset for _, dataset in datasets]
        self.sequence_length, self.sequences_per_step, self.seed, self.total_steps = (
            sequence_length,
            sequences_per_step,
            seed,
            total_steps,
        )
        self.windows = [self._count_windows(name, dataset) for name, dataset in datasets]
        self._mix = mix
        self._rows_before = self._count_rows()
        self.epochs_needed: dict[str, float] = {
            name: float(rows / windows)
            for name, rows, windows in zip(self.names, self._rows_before[-1], self.windows, strict=True)
        }
        self._check_epochs(epochs)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The rows of `step`'s global batch that are `rank`'s: slice rank of world_size, contiguous.

        Raises DataError where the data holds an id outside of its vocabulary.
        """
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} of a run of {self.total_steps}")
        first, last = _rank_slice(self.sequences_per_step, rank, world_size)
        sources = self._sources(step)
        ids = np.empty((last - first, self.sequence_length + 1), dtype=np.int64)
        documents = np.zeros((last - first, self.sequence_length), dtype=np.int32)
        for number, dataset in enumerate(self.datasets):
            rows = np.flatnonzero(sources == number)
            samples = self._rows_before[step, number] + np.arange(len(rows))
            mine = (rows >= first) & (rows < last)
            for row, start in zip(rows[mine] - first, self._window_starts(number, samples[mine]), strict=True):
                dataset.read_into(int(start), ids[row])
            _check_ids(dataset, ids[rows[mine] - first])
            documents[rows[mine] - first] = _document_numbers(ids[rows[mine] - first, :-1], dataset.end_of_text)
        return Batch(ids[:, :-1].copy(), ids[:, 1:].copy(), documents, self.sequences_per_step * self.sequence_length)

    def sources(self, step: int) -> list[str]:
        """The name of the data set that each row of `step`'s global batch comes from."""
        return [self.names[number] for number in self._sources(step)]

    def _count_windows(self, name: str, dataset: TokenDataset) -> int:
        windows = (dataset.tokens - self.sequence_length) // self.sequence_length
        if windows < 1:
            raise DataError(
                f"data set {name!r} ({dataset.path}) holds {dataset.tokens} tokens; sequences of "
                f"{self.sequence_length} need at least {2 * self.sequence_length}: shorten them or prepare more text"
            )
        return windows

    def _sources(self, step: int) -> NDArray[np.int64]:
        """Number of the data set of each row of a step: (B,)."""
        sources: NDArray[np.int64] = self._sources_at(np.array([step]))[0]
        return sources

    def _sources_at(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the data set of each row of each of `steps`: (steps, B)."""
        B, n = self.sequences_per_step, len(self.datasets)
        if n == 1:
            return np.zeros((len(steps), B), dtype=np.int64)
        weights = np.stack([self._mix(float(step) / self.total_steps) for step in steps])
        # Thresholds in 64-bit fixed point, so that every machine decides alike; 2^64 itself does not fit.
        limits = np.minimum(np.cumsum(weights, axis=1)[:, :-1] * 2.0**64, 2.0**64 - 2.0**11).astype(np.uint64)
        rows = steps.astype(np.uint64)[:, None] * np.uint64(B) + np.arange(B, dtype=np.uint64)
        points = rows * _GOLDEN + np.uint64(hash64(self.seed, _SHARE))
        sources = np.zeros(points.shape, dtype=np.int64)
        for column in limits.T:
            sources += points >= column[:, None]
        return sources

    def _count_rows(self) -> NDArray[np.int64]:
        """Rows that each data set has given before each step: (total_steps + 1, datasets)."""
        n = len(self.datasets)
        counts = np.zeros((self.total_steps + 1, n), dtype=np.int64)
        chunk = max(1, (1 << 20) // self.sequences_per_step)  # bounds the memory of the count, not of the run
        for start in range(0, self.total_steps, chunk):
            sources = self._sources_at(np.arange(start, min(start + chunk, self.total_steps)))
            for number in range(n):
                counts[start + 1 : start + 1 + len(sources), number] = (sources == number).sum(axis=1)
        return np.cumsum(counts, axis=0)

    def _window_starts(self, number: int, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token position where each sample of data set `number` begins."""
        T, N = self.sequence_length, self.windows[number]
        starts = np.empty(len(samples), dtype=np.int64)
        epochs = samples // N
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            phase = hash64(self.seed, _PHASE, int(epoch)) % T
            order = permute(samples[chosen] % N, N, hash64(self.seed, _ORDER, int(epoch)))
            starts[chosen] = phase + order * T
        return starts

    def _check_epochs(self, allowed: int | None) -> None:
        from gptlab.config.numbers import format_count  # its package is slow to import: only where it is said

        for name, dataset in zip(self.names, self.datasets, strict=True):
            needed = self.epochs_needed[name]
            if allowed is not None and needed > allowed:
                raise DataError(
                    f"data set {name!r} ({dataset.path}) holds {format_count(dataset.tokens)} tokens; the run needs "
                    f"{needed:.2f} epochs of it and data.epochs allows {allowed}: train for fewer tokens, prepare more "
                    "text, or raise data.epochs"
                )
            if needed > 1:
                say(f"data set {name!r} is read {needed:.2f} times ({math.ceil(needed)} epochs, each shuffled anew)")


class GrowingSequences(BatchStream):
    """The rows of `BatchStream`, each cut into shorter ones at first: of `start` tokens, and twice as long after every
    `every` tokens of the run, until they are whole (hlb-GPT 0.4: from 32 tokens, doubled every 80 steps; Li et al.
    2022, "The Stability-Efficiency Dilemma", arXiv:2108.06084).

    A step has the same tokens in the same order as without, in rows that see less of what came before. Raises
    ConfigError where T is not `start` times a power of two.
    """

    slot = "stream"

    def __init__(
        self,
        datasets: Sequence[tuple[str, TokenDataset]],
        mix: Mix,
        sequence_length: int,
        sequences_per_step: int,
        seed: int,
        total_steps: int,
        epochs: int | None,
        *,
        start: int = 32,
        every: int,
    ) -> None:
        from gptlab.config.numbers import require_range

        require_range("data.stream", "at least 1", start=start, every=every)
        if sequence_length > start and (sequence_length % start or (sequence_length // start).bit_count() != 1):
            raise ConfigError(
                f"data.stream.start: {start} doubled does not come to train.sequence_length, {sequence_length}; take "
                "that divided by 2, 4, 8, …",
                key="data.stream.start",
            )
        super().__init__(datasets, mix, sequence_length, sequences_per_step, seed, total_steps, epochs)
        self.start, self.every = start, every

    def length(self, step: int) -> int:
        """Tokens of the rows of `step`."""
        doublings = step * self.sequences_per_step * self.sequence_length // self.every
        return min(self.sequence_length, self.start << min(doublings, 62))

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The rows of `step`'s global batch that are `rank`'s; as of `BatchStream`, cut."""
        whole, length = super().batch(step, rank, world_size), self.length(step)
        documents = whole.documents.reshape(-1, length)
        inputs, targets = whole.inputs.reshape(-1, length), whole.targets.reshape(-1, length)
        return Batch(inputs, targets, documents - documents[:, :1], whole.global_targets)


def validation_batches(
    dataset: TokenDataset,
    sequence_length: int,
    rows: int,
    tokens: int | None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Validation batches: each of the first `tokens` targets once, in order (None, or more than there are: all).

    All batches have the same shape: places after the end hold targets IGNORE (and inputs 0).

    Args:
        rows: rows of the global batch; rank gets its contiguous slice, as in training.

    Raises DataError where the data set has no token to predict, or ids outside its vocabulary.
    """
    targets = dataset.targets(tokens)
    if targets < 1:
        raise DataError(f"{dataset.path}: its {dataset.split} split has no token to predict; prepare it with more text")
    windows = -(-targets // sequence_length)
    first, last = _rank_slice(rows, rank, world_size)
    for begin in range(0, windows, rows):
        in_batch = min(targets - begin * sequence_length, rows * sequence_length)
        start = (begin + first) * sequence_length
        mine = max(0, min(targets - start, (last - first) * sequence_length))
        inputs = np.zeros((last - first, sequence_length), dtype=np.int64)
        expected = np.full((last - first, sequence_length), IGNORE, dtype=np.int64)
        if mine:
            ids = dataset.read(start, mine + 1)
            _check_ids(dataset, ids)
            inputs.reshape(-1)[:mine] = ids[:-1]
            expected.reshape(-1)[:mine] = ids[1:]
        yield Batch(inputs, expected, _document_numbers(inputs, dataset.end_of_text), in_batch)


def _rank_slice(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    return rows * rank // world_size, rows * (rank + 1) // world_size


def _document_numbers(inputs: NDArray[np.int64], end_of_text: int | None) -> NDArray[np.int32]:
    if end_of_text is None or not inputs.size:
        return np.zeros(inputs.shape, dtype=np.int32)
    opened = np.cumsum(inputs == end_of_text, axis=1, dtype=np.int32)
    documents: NDArray[np.int32] = opened - opened[:, :1]
    return documents


def _check_ids(dataset: TokenDataset, ids: NDArray[np.int64]) -> None:
    """Raise DataError where `ids`, just read from `dataset`, leave its vocabulary."""
    if dataset.vocab_size is None or not ids.size or int(ids.max()) < dataset.vocab_size:
        return
    for shard in dataset.shards:
        largest = int(shard.map().max())
        if largest >= dataset.vocab_size:
            raise DataError(
                f"{shard.path}: holds token id {largest}, the vocabulary has {dataset.vocab_size} (0 to"
                f" {dataset.vocab_size - 1}); the shard is damaged or was made with another tokenizer"
            )
