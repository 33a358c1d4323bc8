"""The MLPs: position-wise layers of a block, (B, T, D) → (B, T, F) → (B, T, D).

A plain MLP has two matrices, 2·D·F weights; a gated one has three. `hidden` sets F; otherwise F is `ratio` · D
rounded up to a multiple of `multiple_of` (the gated default of 8/3 keeps the weights of a plain MLP of ratio 4).
`hidden_dropout` acts on the F activations.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.config import Slot, build, require_range
from gptlab.errors import ConfigError

_PLAIN_SHARDING = {"up": "column", "down": "row"}
_GATED_SHARDING = {"gate": "column", "up": "column", "down": "row"}
_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)


def hidden_width(dim: int, ratio: float, hidden: int | None, multiple_of: int) -> int:
    """F, from the arguments that every MLP has. Raises ConfigError where that is no width."""
    require_range("model.block.mlp", "at least 1", hidden=hidden, multiple_of=multiple_of)
    require_range("model.block.mlp", "above 0", ratio=ratio)
    return hidden if hidden is not None else multiple_of * math.ceil(round(ratio * dim, 3) / multiple_of)


class _Plain(nn.Module):
    """down(activation(up(x))): two matrices, and what stands between them."""

    reads = ("up",)  # the matrices that see the input, in the order in which `activation` takes their outputs

    def __init__(
        self,
        dim: int,
        *,
        ratio: float = 4.0,
        hidden: int | None = None,
        multiple_of: int = 1,
        bias: bool = False,
        hidden_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_range("model.block.mlp", "at least 0 and below 1", hidden_dropout=hidden_dropout)
        self.hidden = hidden_width(dim, ratio, hidden, multiple_of)
        self.up = nn.Linear(dim, self.hidden, bias=bias)
        self.down = nn.Linear(self.hidden, dim, bias=bias)
        self.down.writes_residual = True
        self.dropout = nn.Dropout(hidden_dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)"""
        return self.down(self.dropout(self.activation(self.up(x_BTD))))

    def activation(self, x_BTF: Tensor) -> Tensor:
        """(B, T, F) → (B, T, F); the identity, which makes the whole linear, unless a subclass says otherwise."""
        return x_BTF


class Linear(_Plain):
    """down(up(x)): nothing between the matrices, so that the MLP is a product of low rank at most. A control for what
    the nonlinearity is worth; and what templateGPT computes where it does not gate."""

    slot = "mlp"
    sharding = _PLAIN_SHARDING


class GELU(_Plain):
    """down(gelu(up(x))) (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    `tanh` is the approximation that GPT-2 uses, by torch's fused kernel. `openai` is the same formula operation by
    operation, as OpenAI and transformers write it: slower without torch.compile, and equal to theirs to the last bit,
    which twelve layers of large weights otherwise blow up to the fourth digit.
    """

    slot = "mlp"
    sharding = _PLAIN_SHARDING

    def __init__(
        self,
        dim: int,
        *,
        ratio: float = 4.0,
        hidden: int | None = None,
        multiple_of: int = 1,
        bias: bool = False,
        hidden_dropout: float = 0.0,
        approximate: Literal["none", "tanh", "openai"] = "tanh",
    ) -> None:
        super().__init__(
            dim, ratio=ratio, hidden=hidden, multiple_of=multiple_of, bias=bias, hidden_dropout=hidden_dropout
        )
        self.approximate = approximate

    def activation(self, x_BTF: Tensor) -> Tensor:
        """(B, T, F) → (B, T, F)"""
        if self.approximate == "openai":
            return 0.5 * x_BTF * (1.0 + torch.tanh(_SQRT_2_OVER_PI * (x_BTF + 0.044715 * torch.pow(x_BTF, 3.0))))
        return F.gelu(x_BTF, approximate=self.approximate)


class ReLU(_Plain):
    """down(relu(up(x))), the original transformer's (Vaswani et al. 2017, arXiv:1706.03762, eq. 2)."""

    slot = "mlp"
    sharding = _PLAIN_SHARDING

    def activation(self, x_BTF: Tensor) -> Tensor:
        """(B, T, F) → (B, T, F)"""
        return F.relu(x_BTF)


class SiLU(_Plain):
    """down(silu(up(x))), silu(x) = x·sigmoid(x) (Elfwing et al. 2017, arXiv:1702.03118)."""

    slot = "mlp"
    sharding = _PLAIN_SHARDING

    def activation(self, x_BTF: Tensor) -> Tensor:
        """(B, T, F) → (B, T, F)"""
        return F.silu(x_BTF)


class ReLU2(_Plain):
    """down(relu(up(x))²) (So et al. 2021, Primer, arXiv:2109.08668)."""

    slot = "mlp"
    sharding = _PLAIN_SHARDING

    def activation(self, x_BTF: Tensor) -> Tensor:
        """(B, T, F) → (B, T, F)"""
        return F.relu(x_BTF).square()


class _Gated(nn.Module):
    """down(f(gate(x)) · up(x)): three matrices (Shazeer 2020, arXiv:2002.05202)."""

    reads = ("gate", "up")

    def __init__(
        self,
        dim: int,
        *,
        ratio: float = 2.6666666666666665,
        hidden: int | None = None,
        multiple_of: int = 64,
        bias: bool = False,
        hidden_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_range("model.block.mlp", "at least 0 and below 1", hidden_dropout=hidden_dropout)
        self.hidden = hidden_width(dim, ratio, hidden, multiple_of)
        self.gate = nn.Linear(dim, self.hidden, bias=bias)
        self.up = nn.Linear(dim, self.hidden, bias=bias)
        self.down = nn.Linear(self.hidden, dim, bias=bias)
        self.down.writes_residual = True
        self.dropout = nn.Dropout(hidden_dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)"""
        return self.down(self.dropout(self.activation(self.gate(x_BTD), self.up(x_BTD))))

    def activation(self, gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
        """Two (B, T, F) → (B, T, F); the bilinear form, unless a subclass bends the gate."""
        return gate_BTF * up_BTF


class SwiGLU(_Gated):
    """down(silu(gate(x)) · up(x)) (Shazeer 2020, arXiv:2002.05202, eq. 6)."""

    slot = "mlp"
    sharding = _GATED_SHARDING

    def activation(self, gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
        """(B, T, F) → (B, T, F)"""
        return F.silu(gate_BTF) * up_BTF


class GeGLU(_Gated):
    """down(gelu(gate(x)) · up(x)) (Shazeer 2020, arXiv:2002.05202, eq. 6); `approximate` as in GELU."""

    slot = "mlp"
    sharding = _GATED_SHARDING

    def __init__(
        self,
        dim: int,
        *,
        ratio: float = 2.6666666666666665,
        hidden: int | None = None,
        multiple_of: int = 64,
        bias: bool = False,
        hidden_dropout: float = 0.0,
        approximate: Literal["none", "tanh"] = "none",
    ) -> None:
        super().__init__(
            dim, ratio=ratio, hidden=hidden, multiple_of=multiple_of, bias=bias, hidden_dropout=hidden_dropout
        )
        self.approximate = approximate

    def activation(self, gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
        """(B, T, F) → (B, T, F)"""
        return F.gelu(gate_BTF, approximate=self.approximate) * up_BTF


class ReGLU(_Gated):
    """down(relu(gate(x)) · up(x)) (Shazeer 2020, arXiv:2002.05202, eq. 6)."""

    slot = "mlp"
    sharding = _GATED_SHARDING

    def activation(self, gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
        """(B, T, F) → (B, T, F)"""
        return F.relu(gate_BTF) * up_BTF


class ReGLU2(_Gated):
    """down(relu(gate(x))² · up(x)): ReLU² in the place of the gate's bend."""

    slot = "mlp"
    sharding = _GATED_SHARDING

    def activation(self, gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
        """(B, T, F) → (B, T, F)"""
        return F.relu(gate_BTF).square() * up_BTF


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast turns products into here; None where it is off, as it always is on the meta device."""
    on = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


def _grouped_product(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Rows (N, D) in groups that end at `ends` (E,), each times its group's matrix of (E, D, F): (N, F)."""
    if rows.device.type == "meta":
        return rows @ matrices[0]  # the same shape and as many operations
    product = F.grouped_mm
    if torch.compiler.is_compiling() and rows.dtype != torch.bfloat16:
        # torch 2.13 runs grouped products of float32, and traces none. Asked for here alone: it imports the compiler.
        product = torch.compiler.disable(product)
    return product(rows, matrices, offs=ends)


class MoE(nn.Module):
    """Mixture of experts: each token goes to `top_k` of `experts` MLPs, weighted, and to all `shared` ones.

    A router scores the experts by sigmoid or softmax of x·w; the weights of the chosen are their scores, made to sum
    to 1 (DeepSeek-V3, arXiv:2412.19437, eq. 12–15); with `top_k` 1 the score itself is the weight (Switch, Fedus et al.
    2021, arXiv:2101.03961, eq. 2). No token is dropped. Load is balanced without an auxiliary loss: a
    bias a expert, which counts for the choice and not for the weight, rises by `balance_rate` at each step where the
    expert had less than its share of the tokens, and falls where more (Wang et al. 2024, arXiv:2408.15664, algorithm
    1). Logged: the load of the busiest and of the idlest expert over the mean, `moe/busiest` and `moe/idlest`.
    """

    slot = "mlp"
    sharding: dict[str, str] = {}  # noqa: RUF012 - its experts are multiplied together, and not one by one

    def __init__(
        self,
        dim: int,
        *,
        experts: int = 8,
        top_k: int = 2,
        shared: int = 1,
        expert: Annotated[Slot, "mlp"] = "SwiGLU",
        score: Literal["sigmoid", "softmax"] = "sigmoid",
        balance_rate: float = 1e-3,
    ) -> None:
        super().__init__()
        require_range("model.block.mlp", "at least 1", experts=experts)
        require_range("model.block.mlp", "at least 0", shared=shared, balance_rate=balance_rate)
        if not 0 < top_k <= experts:
            raise ConfigError(
                f"model.block.mlp.top_k: {top_k} of {experts} experts cannot be chosen; make it from 1 to {experts}",
                key="model.block.mlp.top_k",
            )
        self.experts = nn.ModuleList(build("mlp", expert, dim=dim) for _ in range(experts))
        self.shared = nn.ModuleList(build("mlp", expert, dim=dim) for _ in range(shared))
        if not isinstance(self.experts[0], _Plain | _Gated):
            raise ConfigError(
                f"model.block.mlp.expert: {expert.use} cannot be an expert, which is one of the plain or gated MLPs",
                key="model.block.mlp.expert",
            )
        self.router = nn.Linear(dim, experts, bias=False)
        self.bias = nn.Parameter(torch.zeros(experts), requires_grad=False)  # a parameter, so that it is saved
        self.register_buffer("load", torch.zeros(experts), persistent=False)  # tokens of this step by expert
        self.top_k, self.score, self.balance_rate = top_k, score, balance_rate

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)"""
        x = x_BTD.flatten(0, -2)
        precision = _autocast_dtype(x.device)
        # A choice should not hang on bfloat16's third digit.
        with torch.autocast(x.device.type, enabled=False) if precision else contextlib.nullcontext():
            logits = F.linear(x.float(), self.router.weight.float())
        scores = logits.sigmoid() if self.score == "sigmoid" else logits.softmax(-1)
        chosen = (scores.detach() + self.bias).topk(self.top_k, dim=-1).indices  # (N, k)
        weights = scores.gather(-1, chosen)
        if self.top_k > 1:  # one weight, made to sum to 1, would be 1, and the router would learn nothing
            weights = weights / weights.sum(-1, keepdim=True)

        expert, order = chosen.flatten().sort(stable=True)  # every (token, choice), expert after expert
        counts = torch.zeros_like(self.load).index_add_(0, expert, torch.ones_like(expert, dtype=self.load.dtype))
        if self.training:
            self.load += counts
        token = order // self.top_k
        y = self._apply_experts(x[token], expert, counts.cumsum(0).to(torch.int32))
        weighted = y * weights.flatten()[order, None]  # float32, like the router's scores
        y = torch.zeros(x.shape, device=x.device).index_add(0, token, weighted)
        for shared in self.shared:
            y = y + shared(x)
        return y.view_as(x_BTD).to(x_BTD.dtype)

    def _apply_experts(self, x: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
        """Rows sorted by expert through their experts: (N·k, D) → same. `ends`: (experts,), where each one's rows end.

        As grouped products, whose sizes stay on the device: nothing waits to learn how many tokens went where.
        """
        first = self.experts[0]
        dtype = _autocast_dtype(x.device) or x.dtype

        def product(rows: Tensor, name: str) -> Tensor:
            linears = [getattr(mlp, name) for mlp in self.experts]
            matrices = torch.stack([linear.weight for linear in linears]).to(dtype)
            y = _grouped_product(rows.to(dtype), matrices.mT, ends)
            return y if linears[0].bias is None else y + torch.stack([b.bias for b in linears]).to(dtype)[expert]

        hidden = first.activation(*(product(x, name) for name in first.reads))
        return product(first.dropout(hidden), "down")

    def before_step(self, progress: float) -> None:
        """Forget what was counted outside training steps."""
        self.load.zero_()

    def after_step(self, add_up: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Balance: move each expert's bias against its load in this step. `add_up` sums over processes."""
        load = add_up(self.load.clone())
        relative = load / load.mean()
        self.bias += self.balance_rate * torch.sign(1 - relative)
        return {"moe/busiest": relative.max(), "moe/idlest": relative.min()}

    def active_weights(self) -> int:
        """The matrix weights that one token meets."""
        one = sum(linear.weight.numel() for linear in self.experts[0].modules() if isinstance(linear, nn.Linear))
        return self.router.weight.numel() + (self.top_k + len(self.shared)) * one
