"""Asking before many runs are trained."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from gptlab.console import Place, place, say
from gptlab.errors import GptlabError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gptlab.lab.runs.store import RunSpec, Store


def missing_runs(runs: Iterable[RunSpec], store: Store) -> list[RunSpec]:
    """Those that are not finished."""
    return [run for run in runs if store.finished(run) is None]


def confirm_training(
    missing: list[RunSpec], store: Store, jobs: int | None, *, yes: bool, dry_run: bool, probe: bool, at_most: str = ""
) -> bool:
    """Say what will be trained and for how long, and ask; False for a dry run. Exits 1 where the answer is no."""
    from gptlab.lab.runs.execution import find_devices
    from gptlab.lab.runs.predictions import predict_runs
    from gptlab.planning.formatting import format_seconds

    if not missing:
        say("every run is there already")
        return not dry_run
    found = predict_runs(missing, store, probe=probe)
    devices = len(find_devices(jobs))
    say(f"{at_most}{len(missing)} runs to train, {devices} at once")
    if all(run.hash in found for run in missing):
        say(f"about {format_seconds(sum(found[run.hash].seconds for run in missing) / devices)}")
    if not dry_run and not yes:
        ask_before_training()
    return not dry_run


def ask_before_training() -> None:
    """Ask. Exits 1 where the answer is no; raises GptlabError where nobody is there to give one."""
    nobody = GptlabError("nobody answers at standard input; add --yes to train without being asked")
    if sys.stdin is None or place() is Place.CELL:  # a cell's `!` has a terminal, and nobody can type into it
        raise nobody
    try:
        agreed = typer.confirm("Train these?", default=True, err=True)
    except typer.Abort as abort:
        if not isinstance(abort.__context__, EOFError):
            raise  # a person's interrupt
        say("")  # after the question, on whose line the error would stand
        raise nobody from None
    if not agreed:
        raise typer.Exit(1)
