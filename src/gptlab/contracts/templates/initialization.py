"""An initialization of your own: Normal(0, 1/√fan-in) matrices, small embeddings. Edit from here."""

from __future__ import annotations

import torch
from torch import nn

from gptlab.model.initialization import parameter_generator


class MyIdea:
    """Called once with the new model. Each parameter draws from a generator of its own, seeded by its name."""

    slot = "initialization"

    def __init__(self, layers: int, *, embedding_std: float = 0.02) -> None:
        self.residual_scale = (2 * layers) ** -0.5
        self.embedding_std = embedding_std

    @torch.no_grad()
    def __call__(self, model: nn.Module, seed: int) -> None:
        """Fill the weights of every linear and embedding layer in place."""
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        for name, module in model.named_modules():
            if not isinstance(module, nn.Linear | nn.Embedding):
                continue
            if isinstance(module, nn.Linear) and id(module.weight) in tables:
                continue  # a tied head is filled as the embedding that it is
            std = self.embedding_std
            if isinstance(module, nn.Linear) and not name.startswith("head"):
                std = module.in_features**-0.5
            if getattr(module, "writes_residual", False):
                std *= self.residual_scale
            draw = torch.randn(module.weight.shape, generator=parameter_generator(seed, f"{name}.weight"))
            module.weight.copy_(draw * std)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
