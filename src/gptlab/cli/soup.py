"""`gptlab soup`: the average of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptlab.cli.options import Device
from gptlab.cli.tables import add_row, new_table, show
from gptlab.console import say
from gptlab.errors import ConfigError

if TYPE_CHECKING:
    from gptlab.training.soup import Soup


def soup(
    runs: Annotated[list[Path], typer.Argument(help="run folders, two or more")],
    out: Annotated[str, typer.Option(help="the soup's name: runs/NAME-HASH")],
    weights: Annotated[
        str | None,
        typer.Option(help="comma-separated shares in the order of the runs, scaled to sum to 1; equal if absent"),
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="from the best run to the worst, keep those that do not make it worse")
    ] = False,
    checkpoint: Annotated[
        str | None, typer.Option(help="best, last or a folder of each RUN/checkpoints; by default the final weights")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="data set to evaluate on; by default the runs' own")] = None,
    limit: Annotated[
        int | None, typer.Option(help="validation sequences; by default what the first run's eval.tokens makes")
    ] = None,
    device: Device = "auto",
) -> None:
    """Average the weights of runs into a run of its own, and evaluate all of them on the same tokens."""
    from gptlab.training.soup import soup as make_soup

    try:
        shares = [float(share) for share in weights.split(",")] if weights is not None else None
    except ValueError:
        raise ConfigError(f"--weights {weights}: write numbers with commas between them, as 0.5,0.3,0.2") from None
    options = {"checkpoint": checkpoint, "data": data, "limit": limit, "device": device}
    made = make_soup(runs, out, weights=shares, greedy=greedy, **options)
    show_soup(made)
    say(f"wrote {made.folder}; what it is made of is in soup.yaml")


def show_soup(made: Soup) -> None:
    """The table of a soup: each run, their mean, the soup."""
    table = new_table(("run", "weight", "loss"))
    for one in made.ingredients:
        add_row(table, (str(one.folder), f"{one.weight:.4g}", _loss(one.loss, one.standard_error)))
    add_row(table, ("mean of the runs", "", f"{made.mean_loss:.4f}"))
    add_row(table, (f"{made.folder} ({made.method} soup)", "", _loss(made.loss, made.standard_error)))
    show(table)
    best = min(one.loss for one in made.ingredients)
    say(
        f"soup − mean of its runs: {made.loss - made.mean_loss:+.4f} nats; − best of them: {made.loss - best:+.4f} nats"
    )
    if sum(one.weight > 0 for one in made.ingredients) == 1:
        say("one run was kept: no average with another was as good, and the soup is that run")


def _loss(value: float, error: float | None) -> str:
    return f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")
