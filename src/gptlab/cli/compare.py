"""`gptlab compare`: runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptlab.cli.options import check_folder
from gptlab.cli.tables import show_rows
from gptlab.console import output, say, waiting
from gptlab.errors import GptlabError


def compare(
    runs: Annotated[list[Path], typer.Argument(help="run folders, finished or not")],
    metric: Annotated[str, typer.Option(help="loss, bits_per_byte, or a key of metrics.jsonl")] = "loss",
    top_k: Annotated[
        str | None, typer.Option(help="teacher-forced accuracy among the k likeliest: some of 1,5,10, by commas")
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
    shown = table(found, metric, ks)
    show_rows(shown.header, shown.rows, left=shown.left)
    for line in unlike_lines(found, metric):
        output().print(f"\n{line}", markup=False)
    lines = list(config_lines(found))
    output().print("\nconfigs are equal but for their names" if not lines else "\nconfigs differ in", markup=False)
    for line in lines:
        output().print(f"  {line}", markup=False)
    if out is not None:
        with waiting("drawing"):
            write_comparison(found, out, metric, ks)
        say(f"wrote comparison.html, comparison.csv and curves.png in {out}")
