"""Initial weights, drawn parameter by parameter.

Every parameter draws from its own generator, seeded by the run's seed and the parameter's *name*. So two models that
differ in one part start equal in all others, and the difference between two arms of an experiment is not the
accident of which random numbers came next.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from gptlab.config import require_range
from gptlab.errors import ConfigError
from gptlab.model.component import declared
from gptlab.model.mup import width_scaling


def parameter_generator(seed: int, name: str) -> torch.Generator:
    """The source of randomness of one parameter: a function of (seed, name) alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear and embedding layers by name; a weight shared by two layers (a tied head) is met once."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            yield name, module


@torch.no_grad()
def _fill(parameter: Tensor, draw: Tensor) -> None:
    parameter.copy_(draw.to(parameter.dtype))


class GPT2Init:
    """Normal(0, std) matrices and embeddings, zero biases (Radford et al. 2019, section 2.3).

    Matrices that write to the residual stream are, by `residual`: *scaled*, by 1/√(2L) as in GPT-2; *plain*; or *zero*,
    so that every block starts as the identity (as muP and the modded-nanogpt records do).
    `position_std`: another std for learned positions (OpenAI's code uses 0.01); null: the same. So `embedding_std` for
    tables of token ids (1, as `nn.Embedding` draws them, suits embeddings that are normalized at once), and `head_std`
    for an untied head (0: every token is as likely as any other at the start).
    """

    slot = "initialization"

    def __init__(
        self,
        layers: int,
        *,
        std: float = 0.02,
        residual: Literal["scaled", "plain", "zero"] = "scaled",
        position_std: float | None = None,
        embedding_std: float | None = None,
        head_std: float | None = None,
    ) -> None:
        where = "model.initialization"
        require_range(where, "above 0", std=std)
        require_range(where, "at least 0", position_std=position_std, embedding_std=embedding_std, head_std=head_std)
        self.std, self.position_std, self.embedding_std, self.head_std = std, position_std, embedding_std, head_std
        self.residual_scale = {"scaled": 1 / math.sqrt(2 * layers), "plain": 1.0, "zero": 0.0}[residual]

    def __call__(self, model: nn.Module, seed: int) -> None:
        """Draw the weights of every linear and embedding layer of `model` in place.

        Raises ConfigError for a `head_std` where the head is the embedding, and a `position_std` where no positions
        are learned.
        """
        layers = list(_layers(model))
        if self.head_std is not None and "head" not in (name for name, _ in layers):
            raise ConfigError(
                "model.initialization.head_std: a tied head is the embedding, which has one std; set model.tied to "
                "false, or embedding_std instead",
                key="model.initialization.head_std",
            )
        if self.position_std is not None and not any(name.startswith("position.") for name, _ in layers):
            raise ConfigError(
                "model.initialization.position_std: the position component learns no vectors that could start so; set "
                "it to null, or model.position to Learned",
                key="model.initialization.position_std",
            )
        for name, module in layers:
            std = self._std(name, module) * width_scaling(module.weight).std
            generator = parameter_generator(seed, f"{name}.weight")
            _fill(module.weight, torch.randn(module.weight.shape, generator=generator) * std)
            if getattr(module, "bias", None) is not None:
                _fill(module.bias, torch.zeros(module.bias.shape))

    def _std(self, name: str, module: nn.Module) -> float:
        """That of the layer called `name`, before muP."""
        own = None
        if name.startswith("position."):
            own = self.position_std
        elif isinstance(module, nn.Embedding):
            own = self.embedding_std
        elif name == "head":
            own = self.head_std
        if own is not None:
            return own
        return self.std * (self.residual_scale if declared(module, "writes_residual") else 1.0)


class PyTorchInit:
    """What `nn.Linear` and `nn.Embedding` do by themselves: uniform in ±1/√fan_in, and Normal(0, 1) embeddings."""

    slot = "initialization"

    def __init__(self) -> None:
        pass

    def __call__(self, model: nn.Module, seed: int) -> None:
        """Draw the weights of every linear and embedding layer of `model` in place."""
        for name, module in _layers(model):
            generator = parameter_generator(seed, f"{name}.weight")
            if isinstance(module, nn.Embedding):
                _fill(module.weight, torch.randn(module.weight.shape, generator=generator))
                continue
            scaling = width_scaling(module.weight)
            bound = scaling.std * math.sqrt(scaling.fan_in / module.in_features)  # 1/√fan_in is muP's rule for most
            _fill(module.weight, (torch.rand(module.weight.shape, generator=generator) * 2 - 1) * bound)
            if module.bias is not None:
                generator = parameter_generator(seed, f"{name}.bias")
                _fill(module.bias, (torch.rand(module.bias.shape, generator=generator) * 2 - 1) * bound)
