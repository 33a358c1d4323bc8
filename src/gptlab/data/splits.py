"""From the `data` section of a config to open data sets, and to the stream of batches that training reads."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from gptlab.config import RunConfig, build
from gptlab.config.schema import Data
from gptlab.data.batches import TokenStream
from gptlab.data.dataset import MANIFEST, Split, TokenDataset
from gptlab.errors import ConfigError
from gptlab.record.measurement import Identity, validation_identity
from gptlab.tokenizer import Tokenizer, load_tokenizer


def open_splits(data: Data) -> tuple[Tokenizer, dict[str, TokenDataset], dict[str, TokenDataset]]:
    """The tokenizer, and the training and validation split of each source by name (`data` for a lone `path`).

    Raises ConfigError where no data or no tokenizer is named, DataError where something is missing, damaged, or made
    with another tokenizer.
    """
    sources = data.sources or ({"data": data.path} if data.path else {})
    if not sources:
        raise ConfigError(
            "data.path: no data named; set it to a folder that `gptlab data prepare` made", key="data.path"
        )
    for path in sources.values():
        if not (Path(path) / MANIFEST).is_file():
            TokenDataset.open(path, "train")  # raises where it holds no shards of others either
    carried = [Path(path) / "tokenizer" for path in sources.values() if (Path(path) / "tokenizer").is_dir()]
    named = data.tokenizer or (carried[0] if carried else None)
    if named is None:
        raise ConfigError(
            f"data.tokenizer: {next(iter(sources.values()))} carries no tokenizer; name it (e.g. gpt2)",
            key="data.tokenizer",
        )
    tokenizer = load_tokenizer(named)

    def open_split(path: str, split: Split) -> TokenDataset:
        if (Path(path) / MANIFEST).is_file():
            return TokenDataset.open(path, split, tokenizer_hash=tokenizer.hash)
        return TokenDataset.open(path, split, vocab_size=tokenizer.vocab_size, end_of_text=tokenizer.end_of_text)

    train = {name: open_split(path, "train") for name, path in sources.items()}
    validation = {name: open_split(path, "validation") for name, path in sources.items()}
    return tokenizer, train, validation


def measured_on(config: RunConfig, tokenizer: Tokenizer, validation: Mapping[str, TokenDataset]) -> Identity:
    """What the validations of a run of `config` are read from: splits and tokenizer as `open_splits` gives them."""
    asked = config.eval.tokens if config.eval.tokens is not None else sys.maxsize
    return validation_identity(
        {name: dataset.fingerprint for name, dataset in validation.items()},
        {name: (dataset.documents, dataset.bytes) for name, dataset in validation.items()},
        tokens=asked if any(each.targets(None) > asked for each in validation.values()) else None,
        length=config.validation_length,
        tokenizer=tokenizer.hash,
    )


def open_stream(
    config: RunConfig,
    train_sets: Mapping[str, TokenDataset],
    *,
    sequences_per_step: int | None = None,
    total_steps: int | None = None,
) -> TokenStream:
    """The training batches of `config` from the training splits of `open_splits`.

    `sequences_per_step`, `total_steps`: others than the config's, for a check that needs fewer. Raises DataError where
    the data does not suffice, ConfigError where the mixture does not fit it.
    """
    mix = build("mix", config.data.mix or "Weights", sources={name: one.tokens for name, one in train_sets.items()})
    stream: TokenStream = build(
        "stream",
        config.data.stream or "BatchStream",
        datasets=list(train_sets.items()),
        mix=mix,
        sequence_length=config.train.sequence_length,
        sequences_per_step=sequences_per_step or config.sequences_per_step,
        seed=config.seed.data,
        total_steps=total_steps or config.total_steps,
        epochs=config.data.epochs,
    )
    return stream
