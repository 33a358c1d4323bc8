"""How `gptlab trace` draws a model."""

from __future__ import annotations

import re
from pathlib import Path

from rich.table import Table

from gptlab.config import RunConfig, format_count
from gptlab.console import output, say
from gptlab.data import MANIFEST, Manifest
from gptlab.errors import GptlabError
from gptlab.model.trace import TracedModule, trace_model

_GPT2_VOCABULARY = 50257


def show_trace(config: RunConfig, *, vocab_size: int | None, depth: int) -> None:
    """A table of modules; blocks that are alike are shown once."""
    for option, given in (("--vocab-size", vocab_size), ("--depth", depth)):
        if given is not None and given < 1:
            raise GptlabError(f"{option} must be at least 1 (given: {given})")
    vocabulary = vocab_size or _vocabulary(config)
    traced = trace_model(config, vocabulary)
    rows, alike = _without_repeats([m for m in traced.modules if m.path.count(".") < depth])
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    for heading in ("module", "class", "in", "out"):
        table.add_column(heading, no_wrap=True)
    table.add_column("parameters", justify="right")
    table.add_column("FLOPs/token", justify="right")
    shown = {row.path for row in rows}
    for row in rows:
        parent = row.path.rpartition(".")[0]
        while parent not in shown:  # a module that is never called itself, such as the list of blocks
            parent = parent.rpartition(".")[0]
        name = row.path.removeprefix(parent).removeprefix(".") or "(model)"
        if (found := re.fullmatch(r"blocks\.(\d+)", row.path)) is not None and row.path in alike:
            name = f"blocks {found[1]} to {alike[row.path]}"
        ancestors = [path for path in shown if path and row.path.startswith(f"{path}.")]
        indent = "  " * (len(ancestors) + bool(row.path))
        flops = format_count(row.flops) if row.flops else ""
        parameters = f"{row.parameters:,}" if row.parameters else ""
        table.add_row(indent + name, row.kind, row.inputs, row.output, parameters, flops)
    letters = "  ".join(f"{letter}={size}" for letter, size in traced.letters.items())
    screen = output()
    screen.print(letters, style="dim")
    screen.print(table)
    forward = traced.flops_per_token
    screen.print(
        f"{traced.parameters:,} parameters; a forward pass is {format_count(forward)}FLOPs a token "
        f"(times 3 to train), attention counted in full over T"
    )


def _vocabulary(config: RunConfig) -> int:
    """V of the config's data where it is here, else GPT-2's, which is said."""
    folders = [config.data.path, *(config.data.sources or {}).values()]
    for folder in filter(None, folders):
        if (Path(folder) / MANIFEST).is_file():
            return Manifest.load(Path(folder)).vocab_size
    say(f"no data set at {folders[0]}; taking V = {_GPT2_VOCABULARY} (--vocab-size sets another)")
    return _GPT2_VOCABULARY


def _without_repeats(modules: list[TracedModule]) -> tuple[list[TracedModule], dict[str, str]]:
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
