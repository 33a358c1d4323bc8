"""From a config to a model."""

from __future__ import annotations

import torch
from torch import nn

from gptlab.config import RunConfig, build
from gptlab.config.messages import SlotError
from gptlab.errors import ConfigError
from gptlab.model.mup import apply_mup


def build_model(config: RunConfig, vocab_size: int, *, device: str | torch.device = "cpu") -> nn.Module:
    """The model that `config` describes, initialized from `config.seed.init`, on `device`.

    On "meta" no memory is taken and no weight drawn: enough for shapes, parameter counts and FLOPs.
    Raises ConfigError where the shapes cannot work.
    """
    offered = {"vocab_size": vocab_size, "sequence_length": config.train.sequence_length}
    with torch.device("meta" if str(device) == "meta" else "cpu"):
        model: nn.Module = build("model", config.model, **offered)
    if getattr(model, "mup", None):
        try:
            narrow = config.model.replace(mup=None, **model.mup)
        except SlotError as error:
            raise ConfigError(f"model.mup: {error.message}", key="model.mup") from None
        with torch.device("meta"):
            apply_mup(model, build("model", narrow, **offered))
    if str(device) != "meta" and hasattr(model, "initialize"):
        model.initialize(config.seed.init)
    return model.to(device)
