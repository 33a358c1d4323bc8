"""`gptlab noise`: how far runs of one config lie apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptlab.cli.confirm import confirm_training, missing_runs
from gptlab.cli.options import Config, DryRun, Jobs, MetricName, Overrides, Probe, Yes, load_single, read_metric
from gptlab.cli.tables import add_row, new_table, show, show_rows
from gptlab.console import say
from gptlab.errors import GptlabError, did_you_mean


def noise(
    config: Config,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    seeds: Annotated[int, typer.Option(help="runs for each source of randomness, all else equal")] = 8,
    repeats: Annotated[int, typer.Option(help="how often one seed is trained, to see the hardware")] = 2,
    metric: MetricName = "loss",
    tasks: Annotated[
        str | None, typer.Option(help="comma-separated: benchmarks of questions, and what they can tell at this size")
    ] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    jobs: Jobs = None,
    probe: Probe = True,
) -> None:
    """Measure how far runs of CONFIG lie apart by initialization, data order and hardware; power planning uses it."""
    from gptlab.lab.runs.execution import find_devices, train_missing
    from gptlab.lab.runs.store import Store
    from gptlab.lab.studies.noise import design_noise_runs, estimate_noise, remarks, table, write_noise

    store, measured, names = Store(), read_metric(metric), _task_names(tasks)
    plan = design_noise_runs(load_single(config, overrides), store, seeds=seeds, repeats=repeats, tasks=names)
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
    if names:
        _show_tasks([folder for run in plan.runs if (folder := store.finished(run)) is not None], names)
    say(f"wrote {paths[0]}, which `gptlab run` plans with, and {paths[1].name}")


def _task_names(tasks: str | None) -> tuple[str, ...]:
    """The benchmarks that were named. Raises GptlabError for a name that is none of questions, and where its questions
    are not to be had: before anything is trained."""
    if tasks is None:
        return ()
    from gptlab.evals import benchmark_names
    from gptlab.evals.benchmark import Options, check_benchmarks, find_benchmark

    names, known = tuple(dict.fromkeys(name.strip() for name in tasks.split(","))), benchmark_names(of_questions=True)
    for name in names:
        find_benchmark(name)
        if name not in known:
            raise GptlabError(f"--tasks: {name} asks no questions; {did_you_mean(name, known)}")
    check_benchmarks(names, Options())
    return names


def _show_tasks(folders: list[Path], names: tuple[str, ...]) -> None:
    from gptlab.lab.studies.task_noise import HEADER, rows, task_noise

    table, guessing = new_table(HEADER, left=1), []
    for cells, above in rows([one for name in names for one in task_noise(folders, name)]):
        add_row(table, cells, style=None if above else "dim")
        guessing += [] if above else [cells[0]]
    show(table)
    if guessing:
        say(f"no run is above chance on {', '.join(guessing)}: these accuracies say nothing at this size")
    say(
        f"could show: the smallest difference of two configs that {len(folders)} pairs of seeds find in 4 of 5 cases, "
        "if they share no luck; that of late checkpoints is of those that were evaluated (gptlab eval --checkpoint)"
    )
