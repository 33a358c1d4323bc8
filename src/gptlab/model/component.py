"""What the parts of a model may read of each other: the protocol of components, and what all layers are given.

A component is an `nn.Module` like any other; it need not inherit from anything of gptlab. Where it has something to
say that its weights and its `forward` do not, it says so by an attribute or a method listed in `PROTOCOL`, with its
type, its default, who reads it and what it means. Nobody asks a module for any other attribute, and nobody asks with
`getattr`: everything is read by the functions of this file.

Letters: B batch, T sequence, S keys seen (T plus what a cache holds), D model width, H heads, C head width,
V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gptlab.config import Slot, build
from gptlab.errors import ConfigError
from gptlab.model.backends import Cache, View

Rotary = tuple[Tensor, Tensor]
"""cos and sin, each (T, R/2) where all rows share their positions, else (B, 1, T, R/2); R ≤ C dimensions turn."""

# ---------------------------------------------------------------- the protocol


@dataclass(frozen=True)
class Attribute:
    """An attribute or a method that a component may have.

    Attributes:
        name: what it is called.
        on: where it stands: a "module", a "parameter", the "class" of a component, an "optimizer" or a "growth".
        type: of its value; of a method, its signature.
        default: what holds where it is absent.
        reader: the module of gptlab that reads it.
        meaning: what it says.
    """

    name: str
    on: Literal["module", "parameter", "class", "optimizer", "growth"]
    type: str
    default: Any
    reader: str
    meaning: str

    def of(self, thing: Any) -> Any:
        """Its value on `thing`, or the default."""
        return getattr(thing, self.name, self.default)

    def has(self, thing: Any) -> bool:
        """Whether `thing` has it."""
        return hasattr(thing, self.name)


PROTOCOL = (
    Attribute(
        "before_step",
        "module",
        "(progress: float) → None",
        None,
        "training.loop",
        "called before each optimizer step with the share of the run that is done, 0 to 1: a window that grows",
    ),
    Attribute(
        "after_step",
        "module",
        "(all_reduce) → {name: Tensor}",
        None,
        "training.loop",
        "called after each optimizer step, without gradients; `all_reduce` sums a tensor over processes; returns "
        "metrics to log: a router that balances its load",
    ),
    Attribute(
        "active_weights",
        "module",
        "() → int",
        None,
        "model.component",
        "matrix weights that one token meets, where those are not all of its linear layers: a mixture of experts",
    ),
    Attribute(
        "score_flops",
        "module",
        "(length: int) → float",
        None,
        "model.component",
        "training FLOPs a token of q·k and weights·v in sequences of `length`; without it, a module with `heads` and a "
        "`layer_index` counts 12·H·C·T",
    ),
    Attribute(
        "score_width",
        "module",
        "int",
        None,
        "model.mup",
        "how many products q·k adds up; muP divides the module's `scale` by how much wider that is than in the base",
    ),
    Attribute(
        "document_mask",
        "module",
        "bool",
        False,
        "model.transformer",
        "attention stays inside a packed document, so positions count from the document's start",
    ),
    Attribute(
        "own_distance",
        "module",
        "bool",
        False,
        "model.position",
        "a block that knows distances by itself: of the position component it uses the vectors for embeddings alone",
    ),
    Attribute(
        "window_rotary",
        "module",
        "(positions) → Rotary or None",
        None,
        "model.transformer",
        "of a position: the rotation in layers whose attention has a window; None: that of all layers",
    ),
    Attribute(
        "window",
        "module",
        "int, or an object whose `now` is one",
        None,
        "contracts",
        "how many keys a query sees, itself the last; None: all",
    ),
    Attribute(
        "key_offset",
        "module",
        "bool",
        False,
        "contracts",
        "keys are those of the position before, so a query sees one key further back than its window",
    ),
    Attribute(
        "backend",
        "module",
        "str",
        None,
        "planning.footprint",
        "which kernel computes attention; set to auto where the memory on another device is counted",
    ),
    Attribute(
        "ahead",
        "module",
        "nn.ModuleList",
        (),
        "loss",
        "a model's blocks for tokens further on, which the loss MultiToken trains",
    ),
    Attribute(
        "sharding",
        "module",
        "{name: column, row or divided}",
        None,
        "parallel.sharding",
        "how its layers, and all inside it, are cut over tensor-parallel processes, and which of its numbers (heads) "
        "are divided by them ({}: not at all); its own or its class's, not inherited",
    ),
    Attribute(
        "writes_residual",
        "module",
        "bool",
        False,
        "model.initialization",
        "a linear layer whose output is added to the residual stream: it may start smaller, or at zero",
    ),
    Attribute(
        "stacked",
        "parameter",
        "tuple of int",
        None,
        "optim",
        "rows of the matrices that this one stacks (q, k and v): Muon orthogonalizes each by itself",
    ),
    Attribute(
        "order",
        "parameter",
        "Tensor of int",
        None,
        "model.pieces",
        "of one that is cut over processes: which of its rows stand where; None: all as in the model",
    ),
    Attribute(
        "partial",
        "parameter",
        "bool",
        False,
        "parallel.sharding",
        "each process has it whole and uses it for its part of a layer: its gradient is summed over them",
    ),
    Attribute(
        "width_scaling",
        "parameter",
        "WidthScaling",
        None,
        "model.initialization, optim",
        "what muP found for the parameter: factors of its initial std and of its learning rate",
    ),
    Attribute(
        "see_loss",
        "optimizer",
        "(loss: Tensor) → None",
        None,
        "optim",
        "called before each step with the mean loss of its tokens, a scalar on the device, the same on all processes",
    ),
    Attribute(
        "share_work",
        "optimizer",
        "(world) → None",
        None,
        "training.setup",
        "called once where several processes train: they may each do a part of what all would do alike",
    ),
    Attribute(
        "observe",
        "growth",
        "(gradient_norm: Tensor) → None",
        None,
        "training.loop",
        "called after each step with the norm before clipping, a scalar on the device: reading it waits for that",
    ),
    Attribute(
        "state",
        "growth",
        "{name: number}",
        {},
        "training.loop, training.setup",
        "what it remembers between steps: a checkpoint keeps it",
    ),
    Attribute("slot", "class", "str", None, "config", "the kind of slot whose menu lists the class"),
    Attribute(
        "beside",
        "class",
        "nested dict",
        {},
        "contracts",
        "what else of a config must be so for the component to work",
    ),
    Attribute(
        "off",
        "class",
        "dict",
        None,
        "contracts",
        "the arguments that switch the component's feature off, which must then compute what `baseline` computes",
    ),
    Attribute("baseline", "class", "slot value", None, "contracts", "the component that `off` is compared with"),
)
"""Everything that parts of a model read of each other. docs/extending shows it as a table."""

_BY_NAME = {attribute.name: attribute for attribute in PROTOCOL}


def declared(thing: Any, name: str) -> Any:
    """What `thing` (a module, a parameter or a class) says by the attribute `name` of `PROTOCOL`; else its default."""
    return _BY_NAME[name].of(thing)


def declared_by(module: nn.Module, name: str) -> Any:
    """As `declared`, but what `module` or its class itself says; what it inherits does not count."""
    said = vars(module) if name in vars(module) else vars(type(module))
    return said.get(name, _BY_NAME[name].default)


def modules_with(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """The modules of `model` that have the attribute or method `name` of `PROTOCOL`."""
    attribute = _BY_NAME[name]
    return (module for module in model.modules() if attribute.has(module))


def window_width(module: nn.Module) -> int | None:
    """How many keys a query of `module` sees at present, as its `window` says; None: it does not say, or all."""
    window = declared(module, "window")
    width = window if isinstance(window, int) else getattr(window, "now", None)
    return width if isinstance(width, int) and not isinstance(width, bool) else None


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a model, as its `blocks` and those for tokens further `ahead` have them; none where it has none."""
    return [*getattr(model, "blocks", ()), *declared(model, "ahead")]


# ---------------------------------------------------------------- what layers are given


@dataclass(frozen=True)
class LayerArgs:
    """What the framework gives a layer: its place, and the sizes that all layers share.

    A constructor asks for what it needs by name (`dim`, `layer_index`, …), or for all of it as `layer`, which a block
    hands on to its parts with `build`.

    Attributes:
        dim: D.
        layer_index: from 0.
        layers: L.
        heads: H.
        head_dim: C.
        context_length: the longest sequence that the model can see.
        dropout: of every site that has none of its own.
        vocab_size: V.
        norm: the model's norm, for blocks.
    """

    dim: int
    layer_index: int
    layers: int
    heads: int
    head_dim: int
    context_length: int
    dropout: float
    vocab_size: int
    norm: Slot

    def build(self, kind: str, value: Slot) -> Any:
        """The component that `value` names, in the slot `kind` of this layer."""
        return build(kind, value, layer=self, **vars(self))

    def build_norm(self) -> Any:
        """A norm of the layer's width."""
        return build("norm", self.norm, dim=self.dim)


def require_layers(key: str, indices: list[int], layers: int) -> None:
    """Raise ConfigError for the first of `indices`, the argument at `key`, that is no layer of `layers`."""
    wrong = [index for index in indices if not 0 <= index < layers]
    if wrong:
        raise ConfigError(f"{key}: there is no layer {wrong[0]}; {layers} layers are counted from 0", key=key)


class Context:
    """What all layers share in one forward pass: token ids, rotation, document boundaries, the cache.

    `window_rotary` is the rotation in layers that have a window. `values` is where a layer leaves values for later
    layers: value embeddings by their number, and "first".
    """

    def __init__(
        self,
        ids_BT: Tensor,
        rotary: Rotary | None = None,
        slopes_H: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: Cache | None = None,
        window_rotary: Rotary | None = None,
    ) -> None:
        self.window_rotary = rotary if window_rotary is None else window_rotary
        self.ids, self.rotary, self.slopes, self.documents, self.cache = ids_BT, rotary, slopes_H, documents_BT, cache
        self.values: dict[int | str, Tensor] = {}
        self._views: dict[tuple[int | None, bool], View] = {}

    def view(self, *, window: int | None = None, documents: bool = False) -> View:
        """Which keys the queries see; layers that ask for the same share its masks."""
        key = (window, documents)
        if key not in self._views:
            self._views[key] = View(
                self.ids.shape[1],
                self.ids.device,
                window=window,
                documents_BS=self.documents if documents else None,
                cache=self.cache,
            )
        return self._views[key]

    def starts(self, *, documents: bool) -> Tensor:
        """True at keys that no key of the same text precedes: (B or 1, S)."""
        length = self.ids.shape[1]
        if documents and self.documents is not None:
            return document_positions(self.documents) == 0
        if self.cache is not None:
            return self.cache.starts(length)
        return (torch.arange(length, device=self.ids.device) == 0)[None]


def document_positions(documents_BT: Tensor) -> Tensor:
    """Positions that count from the start of each packed document: (B, T) → (B, T)"""
    index = torch.arange(documents_BT.shape[1], device=documents_BT.device).expand_as(documents_BT)
    begins = torch.ones_like(documents_BT, dtype=torch.bool)
    begins[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return index - torch.where(begins, index, 0).cummax(dim=1).values


# ---------------------------------------------------------------- between steps


def before_step(model: nn.Module, progress: float) -> None:
    """Tell every module that asks how much of the run is done, 0 to 1. Nothing waits for the device."""
    for module in modules_with(model, "before_step"):
        module.before_step(progress)


@torch.no_grad()
def after_step(model: nn.Module, all_reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Let every module that wants act after a step; their metrics, averaged over modules.

    `all_reduce` sums a tensor over processes. Nothing waits for the device.
    """
    metrics: dict[str, list[Tensor]] = {}
    for module in modules_with(model, "after_step"):
        for name, value in module.after_step(all_reduce).items():
            metrics.setdefault(name, []).append(value)
    return {name: torch.stack(values).mean() for name, values in metrics.items()}


# ---------------------------------------------------------------- counting


def flops_per_token(model: nn.Module, length: int) -> float:
    """Training FLOPs a token: 6 a weight that multiplies, plus what attention's scores cost over `length` keys.

    Chowdhery et al. 2022 (PaLM, arXiv:2204.02311, appendix B); like theirs, it gives causality no discount. Modules
    may say more exactly: `active_weights` and `score_flops` of the protocol.
    """
    scores = 0.0
    for module in model.modules():
        if _BY_NAME["score_flops"].has(module):
            scores += module.score_flops(length)
        elif hasattr(module, "heads") and hasattr(module, "layer_index"):
            scores += 12.0 * module.heads * module.head_dim * length
    return 6.0 * _active_weights(model) + scores


def training_flops(model: nn.Module, length: int) -> float:
    """What a model says of its own training FLOPs a token in sequences of `length`; 0 where it says nothing."""
    return float(model.flops_per_token(length)) if hasattr(model, "flops_per_token") else 0.0


def _active_weights(module: nn.Module) -> float:
    if _BY_NAME["active_weights"].has(module):
        return float(module.active_weights())
    own = module.weight.numel() if isinstance(module, nn.Linear) else 0
    return own + sum(_active_weights(child) for child in module.children())
