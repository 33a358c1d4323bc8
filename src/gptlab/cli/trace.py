"""`gptlab trace`: the modules of a model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from gptlab.cli.options import OneStage, Overrides, load_one, vocabulary_of
from gptlab.cli.tables import add_row, new_table, show
from gptlab.console import output, waiting
from gptlab.errors import GptlabError

if TYPE_CHECKING:
    from gptlab.config import RunConfig


def trace(
    config: Annotated[str, typer.Argument(help="a YAML file, or a run folder")],
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    vocab_size: Annotated[int | None, typer.Option(help="V; by default that of the config's data, or 50257")] = None,
    depth: Annotated[int, typer.Option(help="how deep to look into modules")] = 4,
    stage: OneStage = None,
) -> None:
    """Show every module with its shapes (in the dimension letters), parameters and FLOPs."""
    _show_trace(config, load_one(config, overrides, stage), vocab_size=vocab_size, depth=depth)


def _show_trace(source: str, config: RunConfig, *, vocab_size: int | None, depth: int) -> None:
    """A table of modules; blocks that are alike are shown once."""
    from gptlab.config import format_count
    from gptlab.config.numbers import require_count
    from gptlab.model.trace import trace_model, without_repeats

    for option, given in (("--vocab-size", vocab_size), ("--depth", depth)):
        if given is not None and given < 1:
            raise GptlabError(f"{option} must be at least 1 (given: {given})")
    require_count("vocab_size", vocab_size or 1, "vocab_size")
    vocabulary = vocab_size or vocabulary_of(source, config)
    with waiting("building the model"):
        traced = trace_model(config, vocabulary)
    rows, alike = without_repeats([m for m in traced.modules if m.path.count(".") < depth])
    table = new_table(("module", "class", "in", "out", "parameters", "FLOPs/token"), left=4)
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
        add_row(table, (indent + name, row.kind, row.inputs, row.output, parameters, flops))
    letters = "  ".join(f"{letter}={size}" for letter, size in traced.letters.items())
    screen = output()
    screen.print(letters, style="dim")
    show(table)
    forward = traced.flops_per_token
    screen.print(
        f"{traced.parameters:,} parameters; a forward pass is {format_count(forward)}FLOPs a token "
        f"(times 3 to train), attention counted in full over T"
    )
