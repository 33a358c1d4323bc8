"""How `gptlab eval` goes through runs and shows what it found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from gptlab.console import output, say
from gptlab.errors import CheckpointError
from gptlab.evals.tasks import Evaluation, Options, check_tasks, evaluate
from gptlab.interop import load

_SHOWN = {
    "loss": {"loss": "loss", "perplexity": "perplexity", "bits_per_byte": "bits/byte"},
    "topk": {"top_1": "top-1", "top_5": "top-5", "top_10": "top-10"},
    "hellaswag": {"acc": "hellaswag acc", "acc_norm": "acc_norm"},
}
_PLACES = {"perplexity": 2}


def evaluate_runs(
    runs: Sequence[Path], tasks: Sequence[str], options: Options, *, device: str = "auto", checkpoint: str | None = None
) -> None:
    """Evaluate each run, keep the results beside it, and print one table. What can be checked is checked first."""
    names = list(dict.fromkeys(task.strip() for task in tasks))
    check_tasks(names, options)
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
    parts = [found.task, data.resolve().name if data and found.task != "hellaswag" else "", checkpoint or ""]
    return base / "evals" / ("-".join(filter(None, parts)) + ".json")


def _table(rows: Sequence[tuple[Path, list[Evaluation]]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    for found in rows[0][1]:
        for heading in _SHOWN[found.task].values():
            table.add_column(heading, justify="right", no_wrap=True)
    for folder, evaluations in rows:
        step = evaluations[0].settings["step"]
        cells = [_cell(found, metric) for found in evaluations for metric in _SHOWN[found.task]]
        table.add_row(folder.name, "" if step is None else str(step), *cells)
    return table


def _cell(found: Evaluation, metric: str) -> str:
    value, error = found.results[metric], found.standard_errors[metric]
    if value is None:
        return "unknown"
    places = _PLACES.get(metric, 4)
    return f"{value:.{places}f}" + (f" ± {error:.{places}f}" if error is not None else "")
