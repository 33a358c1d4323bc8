"""Components that are broken, each in one way in which people really break them (test_broken.py says what breaks)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.data import Batch, BatchStream
from gptlab.loss import IGNORE, CrossEntropy, LossSum, TokenBatch
from gptlab.model.attention import Attention
from gptlab.model.component import Context
from gptlab.model.initialization import GPT2Init
from gptlab.model.mlp import ReLU2, SwiGLU
from gptlab.model.position import Learned, RoPE
from gptlab.model.residual import Residual


class PeeksAhead(Attention):
    """Adds a little of the token that comes next."""

    slot = "attention"

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        return super().forward(x_BTD, context) + 0.1 * x_BTD.roll(-1, dims=1)


class LeaksAcrossDocuments(Attention):
    """Takes `document_mask`, restarts positions, and attends to the documents before all the same."""

    slot = "attention"

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        asked, self.document_mask = self.document_mask, False
        y_BTD = super().forward(x_BTD, context)
        self.document_mask = asked
        return y_BTD


class WrongCacheOffset(Attention):
    """Turns the tokens that follow a cache as if they stood at the start."""

    slot = "attention"

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        if context.cache is not None:
            context.rotary = RoPE(self.head_dim, 1024).rotary(torch.arange(x_BTD.shape[1]))
        return super().forward(x_BTD, context)


class MixesRows(ReLU2):
    """Subtracts the mean over the batch."""

    slot = "mlp"

    def forward(self, x_BTD: Tensor) -> Tensor:
        return super().forward(x_BTD - x_BTD.mean(dim=0, keepdim=True) / 2)


class BatchNormed(nn.Module):
    """Statistics over rows and positions, future ones included."""

    slot = "norm"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, track_running_stats=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.norm(x_BTD.flatten(0, 1)).view_as(x_BTD)


class UnusedParameter(nn.Module):
    """Has a gain and forgets it."""

    slot = "norm"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:])


class StartsFromNumpy(nn.Module):
    """Draws its initial weights from NumPy's global state."""

    slot = "mlp"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(np.random.normal(0, 0.02, (dim, dim)), dtype=torch.float32))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return F.relu(x_BTD @ self.weight)


class DropsByPython(nn.Module):
    """Dropout that asks Python's random numbers."""

    slot = "mlp"

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(dim, dim, bias=False), dropout

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.training and self.dropout > 0:
            x_BTD = x_BTD * random.random()
        return self.linear(x_BTD)


class ForgetsState(nn.Module):
    """Learns a running mean and keeps it where nothing is saved."""

    slot = "mlp"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear, self.mean = nn.Linear(dim, dim, bias=False), torch.zeros(dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x_BTD.detach().mean(dim=(0, 1))
            return self.linear(x_BTD)
        return self.linear(x_BTD - self.mean)


class DropsABlockInUse(Residual):
    """Leaves out the last block, but not while training."""

    slot = "residual"

    def forward(self, x_BTD: Tensor, blocks: Iterable[nn.Module], context: Context) -> Tensor:
        return super().forward(x_BTD, blocks if self.training else list(blocks)[:-1], context)


class DropsABlock(Residual):
    """Leaves out the last block."""

    slot = "residual"

    def forward(self, x_BTD: Tensor, blocks: Iterable[nn.Module], context: Context) -> Tensor:
        return super().forward(x_BTD, list(blocks)[:-1], context)


class RemembersInUse(ReLU2):
    """Adds what the call before came to, but not while training."""

    slot = "mlp"
    last: Tensor | None = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD = super().forward(x_BTD)
        if self.training:
            return y_BTD
        y_BTD = y_BTD if self.last is None else y_BTD + 0.05 * self.last
        self.last = y_BTD.mean().detach()
        return y_BTD


class OverPositions(nn.Module):
    """One root mean square for a whole sequence."""

    slot = "norm"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * torch.rsqrt(x_BTD.square().mean(dim=(-2, -1), keepdim=True) + 1e-6) * self.weight


class LongestOfTheBatch(Attention):
    """Scales by the longest document of the batch."""

    slot = "attention"

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        y_BTD = super().forward(x_BTD, context)
        if context.documents is None:
            return y_BTD
        numbers = torch.arange(4)[:, None, None]
        longest = (context.documents == numbers).sum(-1).max()
        return y_BTD * longest / context.documents.shape[1]


class WiderFromTheCache(Attention):
    """In layers with a window, one key more where there is a cache."""

    slot = "attention"
    beside = {"model": {"block": {"attention": {"window": 8, "pattern": "LF"}}}}  # noqa: RUF012

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        width = self.window.now
        if width is not None and context.cache is not None:
            self.window.now = width + 1
        y_BTD = super().forward(x_BTD, context)
        self.window.now = width
        return y_BTD


class OneKeyMore(Attention):
    """Sees one key more than its window has, trained and used alike."""

    slot = "attention"
    beside = {"model": {"block": {"attention": {"window": 8}}}}  # noqa: RUF012
    off_by = 1

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        width = self.window.now
        assert width is not None
        self.window.now = width + self.off_by
        y_BTD = super().forward(x_BTD, context)
        self.window.now = width
        return y_BTD


class OneKeyFewer(OneKeyMore):
    """Counts the token itself twice."""

    slot = "attention"
    off_by = -1


class IgnoresPositions(Learned):
    """Gives the first of its vectors, whatever positions it is asked for."""

    slot = "position"

    def embed(self, x_BTD: Tensor, positions: Tensor) -> Tensor:
        return x_BTD + self.embedding.weight[: x_BTD.shape[1]]


class ValuesOfOtherRows(Attention):
    """A value residual that takes the first layer's values of the row before."""

    slot = "attention"

    def _mix_values(self, v_BKTC: Tensor, context: Context) -> Tensor:
        first = context.values.setdefault("first", v_BKTC)
        return v_BKTC + 0.1 * first.roll(1, dims=0)


class NotFiniteInBfloat16(nn.Module):
    """Divides by an epsilon that bfloat16 rounds to nothing."""

    slot = "mlp"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h = self.linear(x_BTD)
        return h * 0.001 / (h.new_tensor(1.001) - 1)


class OtherwiseCompiled(ReLU2):
    """Does something else when it is compiled."""

    slot = "mlp"

    def forward(self, x_BTD: Tensor) -> Tensor:
        return super().forward(x_BTD) * (1.01 if torch.compiler.is_compiling() else 1.0)


class StartsTooLoud(GPT2Init):
    """Embeddings of norm √D, with a tied head."""

    slot = "initialization"

    def __init__(self, layers: int) -> None:
        super().__init__(layers, std=1.0)


class NotOff(Attention):
    """Says that it can be switched off, and is then almost the baseline."""

    slot = "attention"
    off = {}  # noqa: RUF012 - read as a constant

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        return super().forward(x_BTD, context) * 1.000001


class WrongShape(ReLU2):
    """Loses a position."""

    slot = "mlp"

    def forward(self, x_BTD: Tensor) -> Tensor:
        return super().forward(x_BTD)[:, 1:]


class MeanLoss:
    """Returns a mean where a sum is promised."""

    slot = "loss"

    def __call__(self, model: nn.Module, batch: TokenBatch) -> LossSum:
        logits = model(batch.inputs, batch.documents, return_logits=True).flatten(0, 1)
        count = (batch.targets != IGNORE).sum()
        return LossSum(F.cross_entropy(logits.float(), batch.targets.flatten(), ignore_index=IGNORE), count)


class PredictsIgnored:
    """Takes a target that is not to be predicted for the token 0."""

    slot = "loss"

    def __call__(self, model: nn.Module, batch: TokenBatch) -> LossSum:
        logits = model(batch.inputs, batch.documents, return_logits=True).flatten(0, 1).float()
        targets = batch.targets.flatten()
        return LossSum(F.cross_entropy(logits, targets.clamp(min=0), reduction="sum"), (targets != -2).sum())


class CountsIgnored(CrossEntropy):
    """Sums over the targets, and counts the positions."""

    slot = "loss"

    def __call__(self, model: nn.Module, batch: TokenBatch) -> LossSum:
        out = super().__call__(model, batch)
        return LossSum(out.sum, (batch.targets != -2).sum(), out.metrics)


class ForgetsMomentum(torch.optim.Optimizer):
    """Keeps its momentum beside the state."""

    slot = "optimizer"

    def __init__(self, named_parameters: Iterable[tuple[str, Tensor]], *, lr: float = 0.05) -> None:
        super().__init__([{"params": [p for _, p in named_parameters]}], {"lr": lr})
        self.momentum: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.momentum[p] = 0.9 * self.momentum.get(p, torch.zeros_like(p)) + p.grad
                    p -= group["lr"] * self.momentum[p]


class _SGD(torch.optim.Optimizer):
    def __init__(self, named_parameters: Iterable[tuple[str, Tensor]], *, lr: float = 0.05) -> None:
        super().__init__([{"params": [p for _, p in named_parameters]}], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p += self.change(p) * group["lr"]

    def change(self, p: Tensor) -> Tensor:
        assert p.grad is not None
        return -p.grad


class SkipsGains(_SGD):
    """Never steps what has one dimension."""

    slot = "optimizer"

    def change(self, p: Tensor) -> Tensor:
        return super().change(p) * (p.ndim > 1)


class Climbs(_SGD):
    """Goes up."""

    slot = "optimizer"

    def change(self, p: Tensor) -> Tensor:
        return -super().change(p)


class Jitters(_SGD):
    """Steps by chance."""

    slot = "optimizer"

    def change(self, p: Tensor) -> Tensor:
        return super().change(p) * (1 + 1e-4 * float(np.random.random()))


class Negative:
    """Below zero at the end."""

    slot = "schedule"

    def __init__(self, total_steps: int) -> None:
        self.total = total_steps

    def __call__(self, step: int) -> float:
        return math.cos(math.pi * (step + 1) / self.total) if self.total > 1 else 1.0


class Counts:
    """Counts its calls instead of the steps."""

    slot = "schedule"

    def __init__(self, total_steps: int) -> None:
        self.total, self.calls = total_steps, 0

    def __call__(self, step: int) -> float:
        self.calls += 1
        return 1 / self.calls


class HalfABatch:
    """Half a batch, at the end."""

    slot = "growth"

    def __init__(self) -> None:
        pass

    def __call__(self, step: int) -> float:
        return 1 if step < 8 else 0.5


class ForgetsItsSize:
    """Counts its steps where no checkpoint looks."""

    slot = "growth"

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, step: int) -> int:
        return 1 + self.steps // 20

    def observe(self, gradient_norm: Tensor) -> None:
        self.steps += 1


class NoShares:
    """Weights that sum to two."""

    slot = "mix"

    def __init__(self, sources: Mapping[str, int]) -> None:
        self.count = len(sources)

    def __call__(self, progress: float) -> list[float]:
        return [2 / self.count] * self.count


class CutWrongly(SwiGLU):
    """Both layers that read the input are cut by it, and so each process multiplies a part of the sums."""

    slot = "mlp"
    sharding = {"gate": "row", "up": "row", "down": "row"}  # noqa: RUF012


class Hurries(BatchStream):
    """Gives the next batch, whichever is asked for."""

    slot = "stream"

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        self.calls = getattr(self, "calls", -1) + 1
        return super().batch(self.calls % self.total_steps, rank, world_size)
