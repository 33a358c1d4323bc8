"""`gptlab list`: everything that was tried."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptlab.cli.tables import show_rows
from gptlab.console import output, say, waiting

if TYPE_CHECKING:
    from gptlab.lab.report.registry import ExperimentEntry, RunEntry


def list_(
    folder: Annotated[Path, typer.Argument(help="the folder that holds the experiments")] = Path("experiments"),
    runs: Annotated[bool, typer.Option("--runs", help="list the runs in runs/ instead")] = False,
) -> None:
    """List everything that was tried, with what came of it: the negative results too."""
    from gptlab.lab.report.registry import list_experiments, list_runs
    from gptlab.lab.runs.store import Store

    store = Store()
    if runs:
        with waiting("reading runs"):
            every = list(list_runs(store))
        _list_runs(every)
        return
    with waiting("reading experiments"):
        found = list_experiments(folder, store)
    if not found:
        say(f"no experiments in {folder}; `gptlab new` begins one, `gptlab experiment list` names some")
    for entry in found:
        _show_entry(entry)


def _show_entry(entry: ExperimentEntry) -> None:
    from gptlab.planning.formatting import format_dollars, format_seconds

    facts = [entry.state]
    if entry.seconds is not None:
        facts.append(format_seconds(entry.seconds))
    if entry.dollars is not None:
        facts.append(format_dollars(entry.dollars))
    if entry.last_run:
        facts.append(f"last on {entry.last_run}")
    lines = [f"{entry.name} ({', '.join(facts)})"]
    lines += [f"  {text}" for text in (entry.hypothesis, *(f"→ {line}" for line in entry.arms), entry.error) if text]
    for line in lines:
        output().print(line, markup=False)


def _list_runs(found: list[RunEntry]) -> None:
    from gptlab.config import format_count
    from gptlab.planning.formatting import format_seconds

    if not found:
        say("no runs in runs/")
        return
    rows = [
        (
            run.name,
            run.state,
            "–" if run.loss is None else f"{run.loss:.4f}",
            format_count(run.tokens),
            "–" if run.seconds is None else format_seconds(run.seconds),
            run.started.replace("T", " "),
        )
        for run in found
    ]
    show_rows(("run", "state", "loss", "tokens", "time", "begun"), rows, left=2)
