"""`gptlab report`: what an experiment has shown, written down."""

from __future__ import annotations

from gptlab.cli.options import ExperimentFolder
from gptlab.console import output, say, waiting


def report(folder: ExperimentFolder) -> None:
    """Write what an experiment has shown into its folder: report.md, report.html, figures, tables."""
    from gptlab.lab.experiment.spec import load_experiment
    from gptlab.lab.experiment.verdict import verdict_line
    from gptlab.lab.report.findings import read_findings
    from gptlab.lab.report.write import write_report
    from gptlab.lab.runs.store import Store

    with waiting(f"reading the runs of {folder}"):
        findings = read_findings(load_experiment(folder), Store())
    with waiting("writing the report"):
        written = write_report(findings)
    for found in findings.evidence.arms:
        output().print(verdict_line(findings.evidence, found), markup=False)
    say(f"wrote {written[0]}, {written[1].name} and {len(written) - 2} more files in {folder}")
