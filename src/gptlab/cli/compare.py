"""`gptlab compare`: runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptlab.cli.options import check_folder
from gptlab.cli.tables import add_row, new_table, show, show_rows
from gptlab.console import output, say, waiting
from gptlab.errors import GptlabError

if TYPE_CHECKING:
    from gptlab.lab.report.answers import AnswersCompared


def compare(
    runs: Annotated[list[Path], typer.Argument(help="run folders, finished or not")],
    metric: Annotated[str, typer.Option(help="loss, bits_per_byte, or a key of metrics.jsonl")] = "loss",
    top_k: Annotated[
        str | None, typer.Option(help="teacher-forced accuracy among the k likeliest: some of 1,5,10, by commas")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="benchmarks that `gptlab eval` has run on all of them, by commas: question by question"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="a folder for comparison.html, comparison.csv and curves.png")
    ] = None,
) -> None:
    """Show runs beside each other: what they came to, what they cost, in what their configs differ."""
    from gptlab.lab.report.compare import (
        config_lines,
        measure_top_k,
        read_runs,
        table,
        unlike_lines,
        write_comparison,
    )

    try:
        ks = list(dict.fromkeys(int(k) for k in top_k.split(","))) if top_k is not None else []
    except ValueError:
        raise GptlabError(f"--top-k {top_k}: not numbers; write for example --top-k 1,5") from None
    if len(runs) < 2:
        raise GptlabError("compare needs two runs or more; name their folders")
    check_folder(out, "--out")
    found = read_runs(runs, metric)
    if ks:
        measure_top_k(runs, ks)
        found = read_runs(runs, metric)
    answers, names = None, list(dict.fromkeys(task.strip() for task in (tasks or "").split(",")))
    if tasks is not None:
        from gptlab.lab.report.answers import compare_tasks

        answers = compare_tasks(runs, names)
    shown = table(found, metric, ks)
    show_rows(shown.header, shown.rows, left=shown.left)
    for line in unlike_lines(found, metric):
        output().print(f"\n{line}", markup=False)
    lines = list(config_lines(found))
    output().print("\nconfigs are equal but for their names" if not lines else "\nconfigs differ in", markup=False)
    for line in lines:
        output().print(f"  {line}", markup=False)
    if answers is not None:
        _show_answers(runs, names, answers)
    if out is not None:
        with waiting("drawing"):
            write_comparison(found, out, metric, ks)
        say(f"wrote comparison.html, comparison.csv and curves.png in {out}")


def _show_answers(runs: list[Path], tasks: list[str], answers: list[tuple[Path, AnswersCompared]]) -> None:
    """Each run beside the first, question by question; and of seeds of several configs what the tasks tell of them."""
    from gptlab.lab.report.answers import HEADER, SIGNAL_HEADER, rows, signal_rows, signal_to_noise

    compared = rows(answers)
    table = new_table(HEADER, left=2)
    for cells, above in compared:
        add_row(table, cells, style=None if above else "dim")
    output().print(f"\nquestion by question, against {runs[0].resolve().name}", markup=False)
    show(table)
    guessing = [cells[1] for cells, above in compared if not above]
    if guessing:
        say(f"neither run is above chance on {', '.join(dict.fromkeys(guessing))}: its accuracies say nothing")
    say("could show: the smallest true difference that so many questions show in 4 of 5 cases")
    if signals := signal_to_noise(runs, tasks):
        output().print("\nwhat the tasks tell of these configs", markup=False)
        show_rows(SIGNAL_HEADER, signal_rows(signals))
