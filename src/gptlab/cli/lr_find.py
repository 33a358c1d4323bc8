"""`gptlab lr-find`: a learning-rate range test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptlab.cli.options import Config, Overrides, check_picture, load_single
from gptlab.cli.tables import show_rows
from gptlab.console import say


def lr_find(
    config: Config,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    low: Annotated[float, typer.Option(help="where to begin, as a multiple of the config's learning rate")] = 1e-3,
    high: Annotated[float, typer.Option(help="where to end, as a multiple of it")] = 100.0,
    steps: Annotated[int, typer.Option(help="steps from one to the other")] = 200,
    limit: Annotated[float, typer.Option(help="stop where the loss is this many times its lowest")] = 1.5,
    out: Annotated[Path | None, typer.Option(help="the picture; by default lr-find.png in the run's folder")] = None,
) -> None:
    """Raise the learning rate of CONFIG until its loss blows up, and suggest one."""
    from gptlab.files import write_atomic
    from gptlab.lab.runs.execution import find_devices
    from gptlab.lab.runs.store import Store
    from gptlab.lab.studies.lr_find import draw, learning_rates, range_test, run_range_test

    check_picture(out)
    loaded, store = load_single(config, overrides), Store()
    run = range_test(loaded, low=low, high=high, steps=steps)
    found = run_range_test(run, store, find_devices(1)[0], limit=limit)
    known = learning_rates(loaded)
    suggestions = {"steepest descent": found.steepest, "a tenth of divergence": found.cautious}
    show_rows(
        ("", "multiple", *known),
        [
            (name, *(["-"] * (1 + len(known)) if at is None else _scaled(at, known)))
            for name, at in [*suggestions.items(), ("diverged", found.diverged)]
        ],
    )
    if found.diverged is None:
        say(f"the loss never rose to {limit:g} times its lowest; a larger --high or a lower --limit may show it")
    if found.steepest is None:
        say("the loss never fell; a larger --high or more --steps may show where it does")
    picture = out or store.folder(run) / "lr-find.png"
    write_atomic(picture, draw(found, f"{loaded.name}: range test over {len(found.losses)} steps"))
    say(f"picture: {picture}")
    say("a start for tuning, not its end: the best rate of a whole run depends on its length; see `gptlab sweep`")


def _scaled(multiple: float, known: dict[str, float]) -> list[str]:
    """A multiple, and the learning rates that it makes."""
    return [f"{multiple:.3g}", *(f"{multiple * rate:.3g}" for rate in known.values())]
