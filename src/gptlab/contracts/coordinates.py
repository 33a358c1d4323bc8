"""The coordinate check: do activations move equally far at every width, or further the wider the model?

Yang et al. 2022 (Tensor Programs V, arXiv:2203.03466, appendix D.1). A few steps at the config's learning rate are
taken at growing widths, in the standard parametrization and in muP, and how far activations of a fixed batch moved from
their initial values is compared. Where muP is wired right they move by Θ(1); where a learning rate tuned at one width
would be wrong at another, they move further, or less far, by a power of the width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gptlab.config import RunConfig, build
from gptlab.config.numbers import require_count
from gptlab.data import open_splits, open_stream
from gptlab.errors import ConfigError, option
from gptlab.loss import IGNORE, TokenBatch
from gptlab.model import build_model
from gptlab.optim import show_loss
from gptlab.parallel import World, choose_layout
from gptlab.plotting import COLOURS, save_png
from gptlab.training.accumulation import accumulate, to_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOLERANCE = 0.25
"""The power of the width within which a move counts as the same. Standard parametrization shows ½ and more."""
_TOKENS = 1024  # of a batch, at most
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Move:
    """How far a place's activations moved: mean |x_t − x_0|, in `parametrization` (standard or mup)."""

    parametrization: str
    width: int
    step: int
    place: str
    size: float


def coordinate_check(
    config: RunConfig,
    widths: Sequence[int] = (),
    *,
    steps: int = 4,
    seeds: int = 2,
    progress: Callable[[str, int], None] = lambda parametrization, width: None,
) -> list[Move]:
    """Moves of every place at every width, averaged over seeds. `widths`: by default the base's times 1, 2, 4 and 8.

    The config's `model.mup` is the base; its entries grow together with the width. Raises ConfigError where there is
    none, or a width is no multiple of the base's.
    """
    base = dict(config.model.get("mup") or {})
    if "dim" not in base:
        raise ConfigError(
            "model.mup is not set; give the base, for example {dim: 128, heads: 2}, with which to compare"
        )
    require_count("steps", steps, "runs")
    require_count("seeds", seeds, "runs")
    widths = list(widths) or [base["dim"] * factor for factor in (1, 2, 4, 8)]
    if any(width % base["dim"] for width in widths):
        raise ConfigError(f"{option('widths')}: {widths} must be multiples of the base's {base['dim']} (model.mup.dim)")
    batches, vocab_size = _batches(config, steps)
    moves = []
    for parametrization in ("standard", "mup"):
        for width in widths:
            progress(parametrization, width)
            sizes = {name: size * width // base["dim"] for name, size in base.items()}
            model = config.model.replace(**sizes, mup=base if parametrization == "mup" else None)
            wide = config.model_copy(update={"model": model})
            found = [_moves_of(wide, vocab_size, batches, seed) for seed in range(seeds)]
            for key in found[0]:
                step, place = key
                moves.append(Move(parametrization, width, step, place, sum(f[key] for f in found) / seeds))
    return moves


def exponents(moves: Sequence[Move]) -> dict[tuple[str, str], float]:
    """By (parametrization, place): the power of the width with which the last step's move grows, least squares."""
    last = max(move.step for move in moves)
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for move in moves:
        if move.step == last:
            points.setdefault((move.parametrization, move.place), []).append(
                (math.log(move.width), math.log(max(move.size, 1e-30)))
            )
    return {key: _slope(found) for key, found in points.items()}


def plot_moves(moves: Sequence[Move], path: Path, title: str) -> None:
    """Write a picture of moves against width at the last step: both parametrizations side by side, a line a place."""
    save_png(path, lambda figure, _: _draw(moves, title, figure))


def _draw(moves: Sequence[Move], title: str, figure: Figure) -> None:
    last, found = max(move.step for move in moves), exponents(moves)
    figure.set_size_inches(9.5, 4.4)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, parametrization in zip(panels, ("standard", "mup"), strict=True):
        mine = [move for move in moves if move.parametrization == parametrization and move.step == last]
        for color, place in zip(itertools.cycle(COLOURS), dict.fromkeys(move.place for move in mine), strict=False):
            line = [(move.width, move.size) for move in mine if move.place == place]
            label = f"{place} (width^{found[parametrization, place]:+.2f})"
            axes.plot(*zip(*line, strict=True), marker="o", ms=4, lw=1.6, color=color, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set(xlabel="width D", title={"standard": "standard parametrization", "mup": "muP"}[parametrization])
        axes.set_xticks(widths := sorted({move.width for move in mine}), [str(width) for width in widths])
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel(f"mean |x − x at the start| after {last} steps")
    figure.suptitle(title, fontsize=10)


def _batches(config: RunConfig, steps: int) -> tuple[list[TokenBatch], int]:
    """The first batches of the config's data, cut to what a check needs, and the vocabulary."""
    _, train_sets, _ = open_splits(config.data)
    sequences = max(1, min(config.sequences_per_step, _TOKENS // config.train.sequence_length))
    stream = open_stream(config, train_sets, sequences_per_step=sequences, total_steps=steps)
    vocab_size = next(iter(train_sets.values())).vocab_size
    assert vocab_size is not None
    return [to_device(stream.batch(step), _CPU) for step in range(steps)], vocab_size


def _moves_of(config: RunConfig, vocab_size: int, batches: list[TokenBatch], seed: int) -> dict[tuple[int, str], float]:
    """Train one model for as many steps as there are batches; by (step, place), how far activations moved."""
    model = build_model(config.model_copy(update={"seed": config.seed.model_copy(update={"init": seed})}), vocab_size)
    loss, layout = build("loss", config.loss), choose_layout(World(), _CPU)
    optimizer = build("optimizer", config.optimizer, named_parameters=list(model.named_parameters()))
    start = _activations(model, batches[0])
    moves = {}
    for step, batch in enumerate(batches, start=1):
        targets = int((batch.targets != IGNORE).sum())
        done = accumulate(model.train(), loss, [batch], global_targets=targets, layout=layout, dtype=torch.float32)
        show_loss(optimizer, done.loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for place, now in _activations(model, batches[0]).items():
            moves[step, place] = (now - start[place]).abs().mean().item()
    return moves


@torch.no_grad()
def _activations(model: nn.Module, batch: TokenBatch) -> dict[str, Tensor]:
    """What the embedding, the last block and its parts put out, and the logits."""
    last = model.blocks[-1]
    places = {"embedding": model.embedding, "stream": last}
    places |= {name: part for name, part in last.named_children() if name in ("attention", "mlp")}
    found: dict[str, Tensor] = {}

    def keep(place: str) -> Callable[..., None]:
        return lambda module, inputs, output: found.__setitem__(place, output.detach().float())

    handles = [module.register_forward_hook(keep(place)) for place, module in places.items()]
    found["logits"] = model.eval()(batch.inputs, batch.documents, return_logits=True).float()
    for handle in handles:
        handle.remove()
    return found


def _slope(points: list[tuple[float, float]]) -> float:
    """Least squares."""
    x_mean, y_mean = (sum(values) / len(points) for values in zip(*points, strict=True))
    above = sum((x - x_mean) * (y - y_mean) for x, y in points)
    return above / max(sum((x - x_mean) ** 2 for x, _ in points), 1e-30)
