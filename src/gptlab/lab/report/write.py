"""`gptlab report`: what an experiment says, written beside its statement."""

from __future__ import annotations

from pathlib import Path

from gptlab.files import write_atomic
from gptlab.lab.report import markdown, page
from gptlab.lab.report.content import report_blocks
from gptlab.lab.report.figures import draw, save_figures
from gptlab.lab.report.findings import Findings, first_hash
from gptlab.lab.report.tables import differences_csv, report_json, runs_csv


def write_report(findings: Findings) -> list[Path]:
    """Write report.md, report.html, report.json, runs.csv, differences.csv and figures/ into the experiment's folder.

    The same findings make the same bytes. Returns what was written, the report first.
    """
    folder = findings.experiment.folder
    first = first_hash(folder)
    blocks = report_blocks(findings, first)
    title = f"{findings.experiment.name}: report"
    # All are made before one is written: a run that turns out to be damaged leaves the last report as it was.
    contents = {
        "report.md": markdown.render(blocks),
        "report.html": page.render(blocks, title, lambda name, dark: draw(findings, name, "svg", dark=dark)),
        "runs.csv": runs_csv(findings),
        "differences.csv": differences_csv(findings),
        "report.json": report_json(findings, first),
    }
    figures = save_figures(findings, folder / "figures")
    for name, content in contents.items():
        write_atomic(folder / name, content)
    return [*(folder / name for name in contents), *figures]
