"""A token stream of your own: gptlab's, with the first tokens of every sequence not to be predicted. Edit from here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gptlab.data import IGNORE, Batch, BatchStream, TokenDataset
from gptlab.data.batches import Mix


class MyIdea:
    """The batches of `BatchStream`; of each sequence the first `prompt` targets are left out of the loss."""

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
        prompt: int = 4,
    ) -> None:
        self.stream = BatchStream(datasets, mix, sequence_length, sequences_per_step, seed, total_steps, epochs)
        self.prompt, self.targets = prompt, sequences_per_step * (sequence_length - prompt)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The share of `rank` in the batch of `step`. `global_targets` counts those of all processes."""
        batch = self.stream.batch(step, rank, world_size)
        targets = batch.targets.copy()
        targets[:, : self.prompt] = IGNORE
        return replace(batch, targets=targets, global_targets=self.targets)
