"""A small trial of a large config: its lengths shrink together, its model and rates stay as they are."""

from __future__ import annotations

import math
from typing import Any

from gptlab.config.schema import RunConfig
from gptlab.errors import GptlabError, option

_SHORTEST = 64  # tokens of a sequence, where the config's own is not shorter
_FEWEST = 16_384  # tokens of a validation: fewer tell nothing


def scaled(config: RunConfig, scale: float) -> dict[str, Any]:
    """The keys of `config` that a trial of `scale` of its tokens changes, dotted, with their values.

    Tokens shrink by s = `scale`; the tokens of a step by √s, and so does the number of steps; a sequence, in powers of
    two, by at most s^¼, so that a batch keeps many. What is counted in steps shrinks by √s, validation by s, to no
    fewer than 16,384 tokens. Raises GptlabError where `scale` is no share.
    """
    if not 0 < scale <= 1:
        raise GptlabError(f"{option('scale', scale)}: give a share above 0 and at most 1, such as 0.01")
    train, root = config.train, math.sqrt(scale)
    wanted = train.sequence_length * math.sqrt(root)
    length = max(2 ** int(math.log2(wanted)), min(_SHORTEST, train.sequence_length))
    sequences = max(1, round(train.batch_tokens * root / length))
    changed: dict[str, Any] = {
        "train.tokens": max(sequences * length, round(train.tokens * scale)),
        "train.batch_tokens": sequences * length,
        "train.sequence_length": length,
    }
    for key, every in (("eval.every", config.eval.every), ("checkpoint.every", config.checkpoint.every)):
        if every:
            changed[key] = max(1, round(every * root))
    if config.log.samples.every:
        changed["log.samples.every"] = max(1, round(config.log.samples.every * root))
    if config.eval.tokens is not None:
        changed["eval.tokens"] = max(min(config.eval.tokens, _FEWEST), round(config.eval.tokens * scale))
    if config.eval.sequence_length is not None:
        changed["eval.sequence_length"] = min(length, config.eval.sequence_length)
    return changed if scale < 1 else {}


def scale_overrides(config: RunConfig, scale: float, overrides: list[str]) -> list[str]:
    """`overrides` after those of `scaled`: what is set by hand is not scaled."""
    by_hand = {text.partition("=")[0].strip() for text in overrides}
    changed = {key: value for key, value in scaled(config, scale).items() if key not in by_hand}
    return [*(f"{key}={value}" for key, value in changed.items()), *overrides]
