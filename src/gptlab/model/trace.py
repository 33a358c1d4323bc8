"""The shapes of a model, seen from outside: forward hooks on every module, no base class needed.

The model is traced on the meta device, where nothing is computed and no memory taken, so a 1B model traces in a
moment. The last size of a tensor is named by its dimension letter, or as a product of letters, where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gptlab.config import RunConfig
from gptlab.model.build import build_model
from gptlab.model.smoke_test import explained
from gptlab.shown import Sheet, Shown


@dataclass(frozen=True)
class TracedModule:
    """One module's call. `flops`: of a forward pass, a token; `parameters`: its own and its parts'."""

    path: str
    kind: str
    inputs: str
    output: str
    parameters: int
    flops: float


@dataclass(frozen=True, repr=False)
class Trace(Shown):
    """All module calls in order, and what the letters stand for."""

    modules: list[TracedModule]
    letters: dict[str, int]
    parameters: int
    flops_per_token: float

    def sheet(self) -> Sheet:
        """A row a module; blocks that are alike once."""
        modules, alike = without_repeats(self.modules)
        rows = [
            [m.path or "(model)", m.kind, m.inputs, m.output, f"{m.parameters:,}", f"{m.flops:,.0f}"] for m in modules
        ]
        for row in rows:
            if row[0] in alike and alike[row[0]] != row[0].rpartition(".")[2]:
                row[0] += f" to {alike[row[0]]}"
        letters = "  ".join(f"{letter}={size}" for letter, size in self.letters.items())
        header = ("module", "class", "in", "out", "parameters", "FLOPs/token")
        return Sheet(f"{self.parameters:,} parameters", rows, header, [letters], left=4)


def without_repeats(modules: Sequence[TracedModule]) -> tuple[list[TracedModule], dict[str, str]]:
    """Drop blocks whose parts equal those of the block before; tell how far each shown block stands for others."""
    parts: dict[str, list[tuple[str, ...]]] = {}
    for module in modules:
        if (found := re.match(r"blocks\.(\d+)", module.path)) is not None:
            rest = module.path[found.end() :]
            parts.setdefault(found[1], []).append((rest, module.kind, module.inputs, module.output, str(module.flops)))
    hidden: set[str] = set()
    alike: dict[str, str] = {}
    shown = ""
    for index in parts:
        if shown and parts[index] == parts[shown]:
            hidden.add(index)
            alike[f"blocks.{shown}"] = index
        else:
            shown = index
    rows = [m for m in modules if not ((f := re.match(r"blocks\.(\d+)", m.path)) and f[1] in hidden)]
    return rows, alike


def trace_model(config: RunConfig, vocab_size: int) -> Trace:
    """Trace one forward pass of the model that `config` describes. Raises ConfigError where it cannot be built."""
    model = build_model(config, vocab_size, device="meta").eval()
    letters = _letters(model, vocab_size, config.train.sequence_length)
    names = _size_names(letters)
    T = config.train.sequence_length
    calls: dict[str, tuple[nn.Module, str, str]] = {}  # by path, in the order in which they begin
    handles = []
    for path, module in model.named_modules():

        def begin(module: nn.Module, inputs: tuple[Any, ...], path: str = path) -> None:
            shown = ", ".join(_shape(x, names) for x in inputs if isinstance(x, Tensor))
            calls.setdefault(path, (module, shown, ""))

        def end(module: nn.Module, inputs: tuple[Any, ...], result: Any, path: str = path) -> None:
            calls[path] = (*calls[path][:2], _shape(result, names) if isinstance(result, Tensor) else "")

        handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    ids = torch.zeros(1, T, dtype=torch.long, device="meta")
    with torch.no_grad(), explained(model), FlopCounterMode(display=False) as counter:
        model(ids, torch.zeros_like(ids), return_logits=True)
    for handle in handles:
        handle.remove()
    counted = counter.get_flop_counts()
    root = type(model).__name__
    modules = []
    for path, (module, inputs, result) in calls.items():
        flops = sum(counted.get(f"{root}.{path}" if path else root, {}).values())
        parameters = sum(p.numel() for p in module.parameters())
        modules.append(TracedModule(path, type(module).__name__, inputs, result, parameters, flops / T))
    total = sum(p.numel() for p in model.parameters())
    return Trace(modules, letters, total, sum(counted.get("Global", {}).values()) / T)


def _letters(model: nn.Module, vocab_size: int, T: int) -> dict[str, int]:
    """What each dimension letter stands for in this model, as far as it says."""
    found = {"T": T, "V": vocab_size, "L": len(getattr(model, "blocks", []))}
    for letter, name in (("D", "dim"), ("H", "heads"), ("C", "head_dim")):
        if hasattr(model, name):
            found[letter] = getattr(model, name)
    for module in model.modules():
        if hasattr(module, "kv_heads"):
            found.setdefault("K", module.kv_heads)
        if hasattr(module, "hidden"):
            found.setdefault("F", module.hidden)
    order = "BTDHKCFVL"
    return {letter: found[letter] for letter in order if letter in found}


def _size_names(letters: dict[str, int]) -> dict[int, str]:
    """Names for sizes of the last dimension; an earlier letter wins, products come last."""
    names: dict[int, str] = {}
    for letter in "DFVC":
        if letter in letters:
            names.setdefault(letters[letter], letter)
    if {"H", "K", "C"} <= letters.keys():
        H, K, C = letters["H"], letters["K"], letters["C"]
        names.setdefault(H * C, "H·C")
        names.setdefault((H + 2 * K) * C, "3D" if H == K and letters.get("D") == H * C else "(H+2K)·C")
        names.setdefault(K * C, "K·C")
    return names


def _shape(tensor: Tensor, names: dict[int, str]) -> str:
    """(1, T, D) as `B T D`; positions, which all rows share, have no B. The last size goes by its name."""
    sizes = list(tensor.shape)
    last = names.get(sizes[-1], str(sizes[-1])) if sizes else ""
    match len(sizes):
        case 1:
            return "T"
        case 2:
            return "B T" if sizes[0] == 1 else f"T {last}"
        case 3:
            return f"B T {last}"
        case 4:
            return f"B {sizes[1]} T {last}"  # heads come before the sequence inside attention
        case _:
            return " ".join(map(str, sizes))
