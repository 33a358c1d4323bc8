"""Asking before many runs are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gptlab.console import say

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
    if not dry_run and not yes and not typer.confirm("Train these?", default=True, err=True):
        raise typer.Exit(1)
    return not dry_run
