"""How `gptlab eval` goes through runs and shows what it found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from gptlab.console import output, say
from gptlab.errors import CheckpointError
from gptlab.evals.benchmark import Column, Evaluation, Options, check_benchmarks, evaluate, find_benchmark
from gptlab.interop import load


def evaluate_runs(
    runs: Sequence[Path], tasks: Sequence[str], options: Options, *, device: str = "auto", checkpoint: str | None = None
) -> None:
    """Evaluate each run, keep the results beside it, and print one table. What can be checked is checked first."""
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
            found.append(evaluate(run, name, options))
            path = result_path(folder, found[-1], data=options.data, checkpoint=checkpoint)
            found[-1].write(path)
            say(f"wrote {path}")
        rows.append((folder, found))
    table = _table(rows)
    # Numbers that a narrow terminal cuts off are worth nothing: the lines may be longer than it is.
    wide = Console(width=10_000)
    screen = Console(highlight=False, width=max(output().width, Measurement.get(wide, wide.options, table).maximum))
    screen.print(table)


def result_path(folder: Path, found: Evaluation, *, data: Path | None = None, checkpoint: str | None = None) -> Path:
    """RUN/evals/TASK.json; another data set or checkpoint than the run's own goes into the name."""
    base = folder.parent if folder.suffix == ".pt" else folder
    named = data.resolve().name if data is not None and find_benchmark(found.task).reads_data else ""
    parts = [found.task, named, checkpoint or ""]
    return base / "evals" / ("-".join(filter(None, parts)) + ".json")


def _table(rows: Sequence[tuple[Path, list[Evaluation]]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    for found in rows[0][1]:
        for column in find_benchmark(found.task).columns:
            table.add_column(column.heading, justify="right", no_wrap=True)
    for folder, evaluations in rows:
        step = evaluations[0].settings["step"]
        cells = [_cell(found, column) for found in evaluations for column in find_benchmark(found.task).columns]
        table.add_row(folder.name, "" if step is None else str(step), *cells)
    return table


def _cell(found: Evaluation, column: Column) -> str:
    value, error = found.results[column.key], found.standard_errors[column.key]
    if value is None:
        return "unknown"
    return f"{value:.{column.digits}f}" + (f" ± {error:.{column.digits}f}" if error is not None else "")
