"""Maximal update parametrization: initial sizes, multipliers and rates with which one learning rate fits every width.

Yang et al. 2022 (Tensor Programs V, arXiv:2203.03466), table 8, for Adam. What grows is found by comparing a model
with its *base*, the model of another width at which both parametrizations are the same. A parameter whose input is n
times as wide as in the base and whose output grows too is *hidden*: its initial std falls by √n and its rate by n. One
whose output alone grows (embeddings, gains, biases) stays as it is. One whose input alone grows and which stays inside
a block (a router, a latent) is like an output: std and rate both fall by n. The head keeps its std and rate, and the
logits are divided by n, which fits a tied head too. Attention's scores fall by 1/C instead of 1/√C where heads widen: a
module with a `score_width`, how many products q·k adds up, has its `scale` divided by the growth of that.

Weight decay is a share of the weight a step, rate · decay; where the rate falls by n the decay rises by n, so that this
share is the same at every width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gptlab.config import require_range
from gptlab.errors import ConfigError
from gptlab.model.component import declared


@dataclass(frozen=True)
class WidthScaling:
    """How much wider than in the base a parameter's input is (`fan_in`), and what follows from it.

    `std` multiplies the initial standard deviation, `rate` the learning rate of an optimizer like Adam.
    """

    fan_in: float = 1.0
    std: float = 1.0
    rate: float = 1.0


def width_scaling(parameter: Tensor) -> WidthScaling:
    """What `apply_mup` found for a parameter; factors of 1 where it was not applied."""
    return declared(parameter, "width_scaling") or _UNSCALED


_UNSCALED = WidthScaling()


def check_base(mup: dict[str, int] | None) -> None:
    """Raise ConfigError for a base that says nothing, or has a width that cannot be."""
    if mup is not None and not mup:
        raise ConfigError(
            "model.mup: {} says nothing of the base; name its widths, as {dim: 128, heads: 2}, or null", key="model.mup"
        )
    require_range("model.mup", "at least 1", **(mup or {}))


def apply_mup(model: nn.Module, base: nn.Module) -> None:
    """Make `model` (a GPT, before its weights are drawn) follow muP with respect to `base`, its like of another width.

    Raises ConfigError where the two are not the same model but for widths.
    """
    own, other = dict(model.named_parameters()), dict(base.named_parameters())
    odd = sorted(set(own) ^ set(other)) or [name for name in own if own[name].ndim != other[name].ndim]
    if odd:
        raise ConfigError(
            f"model.mup: the base model has another set of parameters ({odd[0]}); change widths only", key="model.mup"
        )
    for name, parameter in own.items():
        parameter.width_scaling = _scaling_of(parameter, other[name], model)
    model.logit_scale *= base.head.in_features / model.head.in_features
    for module, like in zip(model.modules(), base.modules(), strict=True):
        if declared(module, "score_width"):
            module.scale = like.scale * like.score_width / module.score_width


def _scaling_of(parameter: Tensor, like: Tensor, model: nn.Module) -> WidthScaling:
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)] + [model.head.weight]
    if parameter.ndim < 2 or any(parameter is table for table in tables):
        return _UNSCALED
    n_out, n_in = (ours / theirs for ours, theirs in zip(parameter.shape[-2:], like.shape[-2:], strict=True))
    if n_in == 1:
        return _UNSCALED
    return WidthScaling(n_in, n_in**-0.5 if n_out != 1 else 1 / n_in, 1 / n_in)
