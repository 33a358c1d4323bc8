"""`gptlab report`, `compare`, `paper`, `list`: what runs have shown, written down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gptlab.lab.report.blocks import Table
    from gptlab.lab.report.registry import ExperimentEntry, RunEntry

Folder = Annotated[Path, typer.Argument(help="an experiment's folder, which holds experiment.yaml")]


def report(folder: Folder) -> None:
    """Write what an experiment has shown into its folder: report.md, report.html, figures, tables."""
    from gptlab.console import output, say
    from gptlab.lab.experiment.spec import load_experiment
    from gptlab.lab.experiment.verdict import verdict_line
    from gptlab.lab.report.findings import read_findings
    from gptlab.lab.report.write import write_report
    from gptlab.lab.runs.store import Store

    findings = read_findings(load_experiment(folder), Store())
    written = write_report(findings)
    for found in findings.evidence.arms:
        output().print(verdict_line(findings.evidence, found), markup=False)
    say(f"wrote {written[0]}, {written[1].name} and {len(written) - 2} more files in {folder}")


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
    from gptlab.console import output, say
    from gptlab.errors import GptlabError
    from gptlab.lab.report.compare import config_lines, measure_top_k, read_runs, table, write_comparison

    try:
        ks = [int(k) for k in top_k.split(",")] if top_k is not None else []
    except ValueError:
        raise GptlabError(f"--top-k {top_k}: not numbers; write for example --top-k 1,5") from None
    if len(runs) < 2:
        raise GptlabError("compare needs two runs or more; name their folders")
    found = read_runs(runs, metric)
    if ks:
        measure_top_k(runs, ks)
        found = read_runs(runs, metric)
    _show(table(found, metric, ks))
    lines = list(config_lines(found))
    output().print("\nconfigs are equal but for their names" if not lines else "\nconfigs differ in", markup=False)
    for line in lines:
        output().print(f"  {line}", markup=False)
    if out is not None:
        write_comparison(found, out, metric, ks)
        say(f"wrote comparison.html, comparison.csv and curves.png in {out}")


def paper(folder: Folder) -> None:
    """Write a LaTeX preprint into an experiment's folder, with every number traced to the runs it comes from."""
    from gptlab.console import say
    from gptlab.lab.experiment.spec import load_experiment
    from gptlab.lab.report.paper import write_paper
    from gptlab.lab.runs.store import Store

    written = write_paper(load_experiment(folder), Store())
    place = folder / "paper"
    kept = "" if place / "paper.tex" in written else "; paper.tex is kept as it is"
    say(f"wrote {len(written)} files in {place}{kept}; compile it with: cd {place} && latexmk -pdf paper")


def _show(table: Table) -> None:
    """A table on standard output, never cut off: lines may be longer than the terminal."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table as Drawn

    from gptlab.console import output

    drawn = Drawn(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(table.header):
        drawn.add_column(name, justify="left" if number < table.left else "right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(cell.replace("[", "\\[") for cell in row))
    wide = Console(width=10_000)
    width = max(output().width, Measurement.get(wide, wide.options, drawn).maximum)
    Console(highlight=False, width=width).print(drawn)


def list_(
    folder: Annotated[Path, typer.Argument(help="the folder that holds the experiments")] = Path("experiments"),
    runs: Annotated[bool, typer.Option("--runs", help="list the runs in runs/ instead")] = False,
) -> None:
    """List everything that was tried, with what came of it: the negative results too."""
    from gptlab.lab.report.registry import list_experiments, list_runs
    from gptlab.lab.runs.store import Store

    store = Store()
    if runs:
        _list_runs(list(list_runs(store)))
        return
    found = list_experiments(folder, store)
    if not found:
        from gptlab.console import say

        say(f"no experiments in {folder}; `gptlab new NAME --baseline CONFIG` begins one")
    for entry in found:
        _show_entry(entry)


def _show_entry(entry: ExperimentEntry) -> None:
    from gptlab.console import output
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
    from gptlab.console import say
    from gptlab.lab.report.blocks import Table
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
    _show(Table(("run", "state", "loss", "tokens", "time", "begun"), rows, left=2))
