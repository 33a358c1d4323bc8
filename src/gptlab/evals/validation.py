"""Held-out text in windows: which data sets, what is measured in each window, and the errors of ratios over windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from gptlab.config.schema import Data
from gptlab.console import say, track
from gptlab.data import MANIFEST, Batch, TokenDataset, validation_batches
from gptlab.data.dataset import Split
from gptlab.errors import DataError, GptlabError, option
from gptlab.evals.benchmark import Options
from gptlab.record.measurement import data_identity, differences
from gptlab.record.runfolder import read_sessions
from gptlab.run import Run
from gptlab.tokenizer import Tokenizer

_WINDOW_TOKENS = {"cpu": 2**13, "mps": 2**14, "cuda": 2**16}  # tokens of a batch of windows


def validation_sets(folder: Path, section: Data, tokenizer: Tokenizer, data: Path | None) -> dict[str, TokenDataset]:
    """The validation split of each source; as `data_sets`."""
    found = data_sets(folder, section, tokenizer, data, "validation")
    if data is None:
        _say_what_changed(folder, found)
    return found


def data_sets(
    folder: Path, section: Data, tokenizer: Tokenizer, data: Path | None, split: Split
) -> dict[str, TokenDataset]:
    """A split of each source of `section`, the data of the run in `folder`, or of `data` in its place.

    Raises DataError where nothing is named, or it was made with another tokenizer.
    """
    sources = {"data": str(data)} if data else section.sources or ({"data": section.path} if section.path else {})
    if not sources:
        raise DataError(f"{folder} names no data; give a data set with {option('data', 'FOLDER')}")
    found = {}
    for name, path in sources.items():
        if (Path(path) / MANIFEST).is_file() or not Path(path).is_dir():
            found[name] = TokenDataset.open(path, split, tokenizer_hash=tokenizer.hash)
        else:
            vocab_size, separator = tokenizer.vocab_size, tokenizer.end_of_text
            found[name] = TokenDataset.open(path, split, vocab_size=vocab_size, end_of_text=separator)
    return found


def _say_what_changed(folder: Path, sets: dict[str, TokenDataset]) -> None:
    """Say it where the run's own validation data are not those that it was validated on."""
    before = next((s["validation"] for s in reversed(read_sessions(folder)) if "validation" in s), None)
    now = data_identity({name: dataset.fingerprint for name, dataset in sets.items()})
    if before is not None and (changed := differences(before, now)):
        say(f"careful: the data of {folder} have changed since it was trained, {changed[0]}; its log is of other text")


def window_length(run: Run, options: Options) -> int:
    """Tokens of a window: what was asked for, else those of the run's own validation. Raises GptlabError for more than
    its model can see."""
    length = options.sequence_length or run.config.validation_length
    if length > run.model.context_length:
        raise GptlabError(
            f"{option('sequence_length', length)}: {run.folder} sees {run.model.context_length} tokens; ask for no more"
        )
    return length


def measure_windows(
    run: Run,
    dataset: TokenDataset,
    what: str,
    name: str,
    length: int,
    limit: int | None,
    measure: Callable[[Iterator[Batch]], Iterator[torch.Tensor]],
) -> torch.Tensor:
    """What `measure` finds in each window of `length` tokens, (windows, numbers), float64."""
    available = max(0, dataset.tokens - 1)
    tokens = available if limit is None else min(available, limit * length)
    rows = max(1, _WINDOW_TOKENS[run.device.type] // length)
    windows = -(-tokens // length)
    batches = track(
        validation_batches(dataset, length, min(rows, max(1, windows)), tokens),
        f"{run.folder.name}: {what}" + ("" if name == "data" else f" on {name}"),
        total=tokens,
        unit="tokens",
        size=lambda batch: batch.global_targets,
    )
    return torch.cat([rows_of_batch.cpu().double() for rows_of_batch in measure(batches)])[:windows]


def window_settings(sets: dict[str, TokenDataset], length: int) -> dict[str, Any]:
    """What numbers over these data sets in windows of `length` tokens depend on."""
    described = {name: {"path": str(d.path), "fingerprint": d.fingerprint} for name, d in sets.items()}
    return {"data": described, "split": "validation", "sequence_length": length}


def ratio_error(above: torch.Tensor, below: torch.Tensor) -> float | None:
    """The standard error of r = Σ above / Σ below over n windows; None for one window.

    By linearization: √(n / (n − 1) · Σ(a − r b)²) / Σb (Cochran, "Sampling Techniques", 1977, section 6.4).
    """
    n = len(above)
    if n < 2:
        return None
    residual = above - above.sum() / below.sum() * below
    return math.sqrt(n / (n - 1) * float(residual.square().sum())) / float(below.sum())
