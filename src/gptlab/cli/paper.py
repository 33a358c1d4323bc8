"""`gptlab paper`: an experiment as a LaTeX preprint."""

from __future__ import annotations

from gptlab.cli.options import ExperimentFolder
from gptlab.console import say, waiting


def paper(folder: ExperimentFolder) -> None:
    """Write a LaTeX preprint into an experiment's folder, with every number traced to the runs it comes from."""
    from gptlab.lab.experiment.spec import load_experiment
    from gptlab.lab.report.paper import write_paper
    from gptlab.lab.runs.store import Store

    with waiting(f"writing what the runs of {folder} have shown"):
        written = write_paper(load_experiment(folder), Store())
    place = folder / "paper"
    kept = "" if place / "paper.tex" in written else "; paper.tex is kept as it is"
    say(f"wrote {len(written)} files in {place}{kept}; compile it with: cd {place} && latexmk -pdf paper")
