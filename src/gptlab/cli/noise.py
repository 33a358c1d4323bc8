"""`gptlab noise`: how far runs of one config lie apart."""

from __future__ import annotations

from typing import Annotated

import typer

from gptlab.cli.confirm import confirm_training, missing_runs
from gptlab.cli.options import Config, DryRun, Jobs, MetricName, Overrides, Probe, Yes, load_single, read_metric
from gptlab.cli.tables import show_rows
from gptlab.console import say


def noise(
    config: Config,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    seeds: Annotated[int, typer.Option(help="runs for each source of randomness, all else equal")] = 8,
    repeats: Annotated[int, typer.Option(help="how often one seed is trained, to see the hardware")] = 2,
    metric: MetricName = "loss",
    yes: Yes = False,
    dry_run: DryRun = False,
    jobs: Jobs = None,
    probe: Probe = True,
) -> None:
    """Measure how far runs of CONFIG lie apart by initialization, data order and hardware; power planning uses it."""
    from gptlab.lab.runs.execution import find_devices, train_missing
    from gptlab.lab.runs.store import Store
    from gptlab.lab.studies.noise import design_noise_runs, estimate_noise, remarks, table, write_noise

    store, measured = Store(), read_metric(metric)
    plan = design_noise_runs(load_single(config, overrides), store, seeds=seeds, repeats=repeats)
    again = [run for run, where in plan.repeats if where.finished(run) is None]
    if not confirm_training(
        [*missing_runs(plan.runs, store), *again], store, jobs, yes=yes, dry_run=dry_run, probe=probe
    ):
        return
    train_missing(plan.runs, store, devices=find_devices(jobs))
    for run, where in plan.repeats:
        train_missing([run], where, devices=find_devices(1))
    found = estimate_noise(plan, store, measured)
    paths = write_noise(store, found)
    show_rows(("source", "runs", "sd", "95%", "share"), table(found))
    for remark in remarks(found):
        say(remark)
    say(f"wrote {paths[0]}, which `gptlab run` plans with, and {paths[1].name}")
