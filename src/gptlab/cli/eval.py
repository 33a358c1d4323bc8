"""`gptlab eval`: benchmarks on runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptlab.cli.options import Checkpoint, Device
from gptlab.cli.tables import show_rows
from gptlab.console import say
from gptlab.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptlab.evals.benchmark import Column, Evaluation, Options


def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="run folders (or a nanoGPT ckpt.pt)")],
    tasks: Annotated[str, typer.Option(help="comma-separated: loss, topk, hellaswag")] = "loss",
    limit: Annotated[
        int | None, typer.Option(help="questions of a task, or validation sequences; all by default")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="data set for loss and topk; by default the run's own")] = None,
    task_data: Annotated[
        Path | None,
        typer.Option(help="folder of benchmark questions; see docs/evaluation.md for where they are found without it"),
    ] = None,
    device: Device = "auto",
    checkpoint: Checkpoint = None,
) -> None:
    """Evaluate runs; results go to RUN/evals/TASK.json and to a table."""
    from gptlab.evals.benchmark import Options

    options = Options(limit=limit, data=data, task_data=task_data)
    _evaluate_runs(runs, tasks.split(","), options, device=device, checkpoint=checkpoint)


def _evaluate_runs(
    runs: Sequence[Path], tasks: Sequence[str], options: Options, *, device: str = "auto", checkpoint: str | None = None
) -> None:
    """Evaluate each run, keep the results beside it, and print one table. What can be checked is checked first."""
    from gptlab.evals.benchmark import check_benchmarks, find_benchmark
    from gptlab.evals.benchmark import evaluate as run_benchmark
    from gptlab.interop import load

    names = list(dict.fromkeys(task.strip() for task in tasks))
    check_benchmarks(names, options)
    for folder in runs:
        if folder.suffix != ".pt" and not (folder / "config.yaml").is_file():
            raise CheckpointError(f"{folder} is not a run folder (it holds no config.yaml); runs are in runs/")
    rows: list[tuple[Path, list[Evaluation]]] = []
    for folder in runs:
        run = load(folder, device=device, checkpoint=checkpoint)
        found = []
        for name in names:
            found.append(run_benchmark(run, name, options))
            path = result_path(folder, found[-1], data=options.data, checkpoint=checkpoint)
            found[-1].write(path)
            say(f"wrote {path}")
        rows.append((folder, found))
    columns = [column for found in rows[0][1] for column in find_benchmark(found.task).columns]
    show_rows(("run", "step", *(column.heading for column in columns)), (_row(*row) for row in rows))


def result_path(folder: Path, found: Evaluation, *, data: Path | None = None, checkpoint: str | None = None) -> Path:
    """RUN/evals/TASK.json; another data set or checkpoint than the run's own goes into the name."""
    from gptlab.evals.benchmark import find_benchmark

    base = folder.parent if folder.suffix == ".pt" else folder
    named = data.resolve().name if data is not None and find_benchmark(found.task).reads_data else ""
    parts = [found.task, named, checkpoint or ""]
    return base / "evals" / ("-".join(filter(None, parts)) + ".json")


def _row(folder: Path, evaluations: Sequence[Evaluation]) -> list[str]:
    from gptlab.evals.benchmark import find_benchmark

    step = evaluations[0].settings["step"]
    cells = [_cell(found, column) for found in evaluations for column in find_benchmark(found.task).columns]
    return [folder.name, "" if step is None else str(step), *cells]


def _cell(found: Evaluation, column: Column) -> str:
    value, error = found.results[column.key], found.standard_errors[column.key]
    if value is None:
        return "unknown"
    return f"{value:.{column.digits}f}" + (f" ± {error:.{column.digits}f}" if error is not None else "")
