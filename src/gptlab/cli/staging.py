"""How `gptlab train` goes through stages, and how `gptlab soup` shows what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from gptlab.config import load_stages
from gptlab.console import output, say
from gptlab.parallel.world import find_world
from gptlab.training.soup import Soup
from gptlab.training.stages import train_stages


def train_in_stages(config: str, overrides: Sequence[str], *, resume: bool) -> None:
    """Train every stage of the config; at the end, where all is."""
    results = train_stages(load_stages(config, overrides), resume=resume)
    if not find_world().is_main or not all(result.finished for result in results):
        return
    for result in results:
        if result.soup is not None:
            show_soup(result.soup)
    for result in results:
        say(f"{result.name}: {result.folder}")
    say(f"next: gptlab eval {results[-1].folder}\n      gptlab sample {results[-1].folder}")


def show_soup(made: Soup) -> None:
    """The table of a soup: each run, their mean, the soup."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True)
    for heading in ("weight", "loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in made.ingredients:
        table.add_row(str(one.folder), f"{one.weight:.4g}", _loss(one.loss, one.standard_error))
    table.add_row("mean of the runs", "", f"{made.mean_loss:.4f}")
    table.add_row(f"{made.folder} ({made.method} soup)", "", _loss(made.loss, made.standard_error))
    output().print(table)
    best = min(one.loss for one in made.ingredients)
    say(
        f"soup − mean of its runs: {made.loss - made.mean_loss:+.4f} nats; − best of them: {made.loss - best:+.4f} nats"
    )
    if sum(one.weight > 0 for one in made.ingredients) == 1:
        say("one run was kept: no average with another was as good, and the soup is that run")


def _loss(value: float, error: float | None) -> str:
    return f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")
