"""`gptlab mup`: is a learning rate tuned at one width right at another?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptlab.cli.options import OneStage, Overrides, check_picture, load_one
from gptlab.console import output, progress, say, waiting
from gptlab.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Maximal update parametrization.")


@app.callback()
def _group() -> None:
    """Keeps `check` a command of its own."""


@app.command()
def check(
    config: Annotated[str, typer.Argument(help="a YAML file whose model.mup names the base")],
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    widths: Annotated[str, typer.Option(help="comma-separated; by default the base's times 1, 2, 4 and 8")] = "",
    steps: Annotated[int, typer.Option(help="optimizer steps at each width", min=1)] = 4,
    seeds: Annotated[int, typer.Option(help="initializations to average over", min=1)] = 2,
    out: Annotated[Path, typer.Option(help="the picture")] = Path("mup-check.png"),
    stage: OneStage = None,
) -> None:
    """Draw the coordinate check of CONFIG; exit 1 where activations under muP move further the wider the model."""
    from rich.table import Table

    from gptlab.contracts.coordinates import TOLERANCE, coordinate_check, exponents, plot_moves

    try:
        chosen = [int(width) for width in widths.split(",")] if widths else []
    except ValueError:
        raise ConfigError(f"--widths: {widths!r} is no list of numbers; write for example 128,256,512") from None
    check_picture(out)
    loaded = load_one(config, overrides, stage)
    with progress(unit="widths", transient=True) as bar:
        task = bar.add_task("coordinate check", total=2 * (len(chosen) or 4))
        moves = coordinate_check(
            loaded,
            chosen,
            steps=steps,
            seeds=seeds,
            progress=lambda kind, width: bar.update(task, advance=1, description=f"{kind}, width {width}"),
        )
    with waiting("drawing"):
        plot_moves(moves, out, f"{loaded.name}: how far activations move")
    found = exponents(moves)
    table = Table("place", "standard", "muP", title=f"move after {steps} steps ∝ width to the power of")
    bad = []
    for place in dict.fromkeys(move.place for move in moves):
        ok = abs(found["mup", place]) <= TOLERANCE
        table.add_row(place, f"{found['standard', place]:+.2f}", f"{found['mup', place]:+.2f}{'' if ok else '  ✗'}")
        bad += [] if ok else [place]
    output().print(table)
    say(f"picture: {out}")
    if bad:
        say(
            f"not constant in width under muP: {', '.join(bad)} (beyond ±{TOLERANCE}); look for an absolute size that "
            "should grow with the width, or a part whose scale muP is not told of"
        )
        raise typer.Exit(1)
