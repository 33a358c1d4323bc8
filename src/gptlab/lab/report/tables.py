"""The numbers of a report for other programs: runs.csv, differences.csv and report.json."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from gptlab.lab.experiment.evidence import ArmEvidence
from gptlab.lab.experiment.verdict import verdict_line
from gptlab.lab.report.findings import Findings
from gptlab.lab.stats.power_law import ComputeEquivalent
from gptlab.seal import sealed_json

SCHEMA = 1
"""Of report.json; raised when a field changes its meaning."""


_RUN_COLUMNS = (
    *("use", "arm", "seed", "value", "parameters", "flops", "tokens", "seconds", "wall_seconds", "peak_memory_bytes"),
    *("dollars", "hardware", "dtype", "code", "started", "failure", "run"),
)


def runs_csv(findings: Findings) -> str:
    """A row a run: what it was for, its metric, what it cost, and where it is."""
    rows = []
    for run in findings.runs:
        f = run.facts
        numbers: list[Any] = [None] * 9
        if f is not None:
            numbers = [f.parameters, f.flops, f.tokens, f.seconds, f.wall_seconds, f.peak_memory_bytes, run.dollars]
            numbers += [f.hardware, f.dtype]
        code = f.code if f is not None else None
        failure = run.failure.message if run.failure is not None else ""
        end = [code, run.started, failure, run.folder.as_posix()]
        rows.append([run.use, run.arm, run.seed, run.value, *numbers, *end])
    return _csv(_RUN_COLUMNS, rows)


def differences_csv(findings: Findings) -> str:
    """A row a pair: both values and their difference."""
    rows = [
        [found.arm.name, arm.seed, arm.value, base.value, arm.value - base.value, arm.folder.name, base.folder.name]
        for found in findings.evidence.arms
        for arm, base in found.pairs
    ]
    return _csv(["arm", "seed", "value", "baseline", "difference", "run", "baseline_run"], rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def report_json(findings: Findings, first_hash: str | None) -> str:
    """What `gptlab list` reads where the runs are not."""
    statement = findings.experiment.statement
    content = {
        "schema": SCHEMA,
        "experiment": findings.experiment.name,
        "hypothesis": statement.hypothesis,
        "metric": statement.metric.label,
        "lower_is_better": statement.metric.lower_is_better,
        "alpha": statement.decision.alpha,
        "smallest_effect": statement.decision.smallest_effect,
        "statement": {"sha256": findings.statement_hash, "first_reported": first_hash or findings.statement_hash},
        "last_run": findings.last_run,
        "runs": len(findings.runs),
        "failed": sum(bool(run.failure) for run in findings.runs),
        "seconds": round(findings.seconds, 1),
        "dollars": findings.dollars,
        "arms": [_arm(findings, found) for found in findings.evidence.arms],
    }
    return sealed_json(content)


def _arm(findings: Findings, found: ArmEvidence) -> dict[str, Any]:
    worth = findings.equivalents.get(found.arm.name)
    return {
        "name": found.arm.name,
        "verdict": found.verdict,
        "line": verdict_line(findings.evidence, found),
        "seeds": len(found.pairs),
        "difference": found.effect.raw if found.effect else None,
        "interval": [bound if math.isfinite(bound) else None for bound in found.decision.interval],
        "p": found.decision.p,
        "percent": found.effect.percent if found.effect else None,
        "noise_units": found.effect.noise_units if found.effect else None,
        "compute_saved": worth.saved if isinstance(worth, ComputeEquivalent) else None,
        "differs_in_more": found.provenance_differences,
    }
