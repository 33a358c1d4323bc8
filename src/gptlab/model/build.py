"""From a config to a model."""

from __future__ import annotations

import torch
from torch import nn

from gptlab.config import RunConfig, build


def build_model(config: RunConfig, vocab_size: int, *, device: str | torch.device = "cpu") -> nn.Module:
    """The model that `config` describes, initialized from `config.seed.init`, on `device`.

    On "meta" no memory is taken and no weight drawn: enough for shapes, parameter counts and FLOPs.
    Raises ConfigError where the shapes cannot work.
    """
    with torch.device("meta" if str(device) == "meta" else "cpu"):
        model: nn.Module = build(
            "model", config.model, vocab_size=vocab_size, sequence_length=config.train.sequence_length
        )
    if str(device) != "meta" and hasattr(model, "initialize"):
        model.initialize(config.seed.init)
    return model.to(device)
