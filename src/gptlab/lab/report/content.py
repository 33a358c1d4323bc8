"""The content of a report, in order: verdicts on the first screen, then the evidence, then every run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from gptlab.config import format_count
from gptlab.lab.experiment.evidence import ArmEvidence
from gptlab.lab.experiment.ledger import CURVE, TUNING, RunRecord
from gptlab.lab.experiment.matching import QUANTITIES, mean_quantity
from gptlab.lab.experiment.spec import BASELINE
from gptlab.lab.experiment.verdict import verdict_line, verdict_notes
from gptlab.lab.report.blocks import Block, Bullets, Code, Heading, Paragraph, Picture, Table, Verdicts
from gptlab.lab.report.findings import Findings
from gptlab.lab.stats.paired import Interval
from gptlab.planning.formatting import format_bytes, format_dollars, format_seconds
from gptlab.planning.records import median_ratios
from gptlab.record.facts import Facts

NONE = "–"
"""Where a number is not known."""


def report_blocks(findings: Findings, first_hash: str | None) -> list[Block]:
    """The whole report. `first_hash`: that of the statement in the first report, where there was one."""
    return [
        *_answer(findings),
        *_statement(findings, first_hash),
        *_evidence(findings),
        *_matching(findings),
        *_tuning(findings),
        *_cost(findings),
        *_runs(findings),
        *_reproduction(findings),
    ]


def _answer(findings: Findings) -> Iterator[Block]:
    evidence, statement = findings.evidence, findings.experiment.statement
    yield Heading(findings.experiment.name, 1)
    yield Paragraph(f"Hypothesis: {statement.hypothesis}")
    yield Verdicts([(found.verdict, verdict_line(evidence, found)) for found in evidence.arms])
    warnings = list(_warnings(findings))
    if warnings:
        yield Bullets(warnings)
    side = "below" if statement.metric.lower_is_better else "above"
    yield Picture(
        "forest",
        f"Mean difference, arm minus baseline, with its anytime-valid interval; {side} zero is better. A difference "
        f"within ±{statement.decision.smallest_effect:g}, shaded, is too small to matter.",
    )
    rows = [_result_row(findings, found) for found in evidence.arms]
    header = ("arm", "verdict", "difference", "interval", "percent", "seed noise", "p", "seeds", "cost")
    yield Table(header, rows, left=2)
    share = f"{100 * (1 - statement.decision.alpha):g}%"
    yield Paragraph(
        f"Intervals and p-values are valid however often one looks; the intervals of all arms hold together with "
        f"{share} confidence. Seed noise: the difference in standard deviations of the baseline over seeds. Cost: wall "
        "time of the arm's runs."
    )


def _warnings(findings: Findings) -> Iterator[str]:
    for found in findings.evidence.arms:
        if found.provenance_differences:
            differences = "; ".join(found.provenance_differences)
            yield f"Careful: {found.arm.name} and the baseline differ in more than the arm: {differences}."
    failed = [run for run in findings.runs if run.failure]
    if failed:
        yield f"{len(failed)} of {len(findings.runs)} runs failed; they are listed below."


def _result_row(findings: Findings, found: ArmEvidence) -> Sequence[str]:
    name = found.arm.name
    runs, cost = findings.finished_runs(name), NONE
    if runs:
        cost = format_seconds(sum(run.facts.wall_seconds for run in runs if run.facts is not None))
        known = [run.dollars for run in runs if run.dollars is not None]
        cost += f", {format_dollars(sum(known))}" if len(known) == len(runs) else ""
    effect = found.effect
    return (
        name,
        found.verdict,
        NONE if effect is None else f"{effect.raw:+.4g}",
        format_interval(found.decision.interval),
        NONE if effect is None or effect.percent is None else f"{effect.percent:+.2f}%",
        NONE if effect is None or effect.noise_units is None else f"{effect.noise_units:+.1f}",
        NONE if not found.pairs else format_p(found.decision.p),
        str(len(found.pairs)),
        cost,
    )


def format_interval(interval: Interval | None) -> str:
    """[-0.1, +0.2]; a dash where nothing is known yet."""
    if interval is None or not all(map(math.isfinite, interval)):
        return NONE
    return f"[{interval.low:+.4g}, {interval.high:+.4g}]"


def format_p(p: float | None) -> str:
    """A p-value with two digits."""
    return NONE if p is None else "<0.0001" if p < 1e-4 else f"{p:.2g}"


def _statement(findings: Findings, first_hash: str | None) -> Iterator[Block]:
    yield Heading("What was asked, before any run")
    yield Code(findings.statement, "yaml")
    if first_hash is not None and first_hash != findings.statement_hash:
        yield Paragraph(
            f"Careful: experiment.yaml has changed since the first report (SHA-256 {first_hash} then, "
            f"{findings.statement_hash} now). Its history says what changed, and whether a result was known by then."
        )
    elif findings.older_than_runs is False:
        yield Paragraph(
            f"This file (SHA-256 {findings.statement_hash}) is younger than the first run of an arm. A checkout or a "
            "copy makes it so, and so does an edit: its history tells which."
        )
    elif findings.older_than_runs:
        yield Paragraph(
            f"This file (SHA-256 {findings.statement_hash}) was last written before the first run of an arm began."
        )


def _evidence(findings: Findings) -> Iterator[Block]:
    evidence = findings.evidence
    yield Heading("Evidence")
    said = [f"{found.arm.name}: {note}" for found in evidence.arms for note in verdict_notes(evidence, found)]
    if said:
        yield Bullets(said)
    yield Picture(
        "differences",
        "Paired differences, one a seed: both runs of a pair saw the same tokens in the same order. The diamond is "
        "their mean with its anytime-valid interval, the shaded band what is too small to matter.",
    )
    yield Picture(
        "losses",
        "Training loss, smoothed, mean and range over seeds; dots are validations. The steep beginning is cut off.",
    )
    if findings.equivalents:
        yield Heading("In compute", 3)
        yield Bullets(
            [
                f"{arm}: {found}" if isinstance(found, str) else f"{arm}: this difference equals {found}"
                for arm, found in findings.equivalents.items()
            ]
        )
    rows = [_fixed_row(found) for found in evidence.arms if found.summary is not None and found.summary.n > 1]
    if rows:
        yield Heading("As if looked at once", 3)
        yield Table(("arm", "n", "mean", "sd", "t interval", "bootstrap", "t-test p", "permutation p", "gain"), rows)
        yield Paragraph(
            "These 95% intervals and p-values hold for one look at a number of seeds chosen beforehand, and for one "
            "arm. The verdict does not use them. Gain: how many times the seeds would be needed without pairing."
        )


def _fixed_row(found: ArmEvidence) -> Sequence[str]:
    summary, effect = found.summary, found.effect
    assert summary is not None
    assert effect is not None
    return (
        found.arm.name,
        str(summary.n),
        f"{summary.mean:+.4g}",
        NONE if summary.sd is None else f"{summary.sd:.3g}",
        format_interval(summary.t_interval),
        format_interval(summary.bootstrap),
        format_p(summary.t_p),
        format_p(summary.permutation_p),
        NONE if effect.pairing_gain is None else f"{effect.pairing_gain:.1f}×",
    )


def _matching(findings: Findings) -> Iterator[Block]:
    base = _facts(findings, BASELINE)
    if not base:
        return
    yield Heading("Was it fair")
    match = findings.experiment.statement.match
    header = ["arm", *(f"{what}{' (matched)' if what in match else ''}" for what in QUANTITIES), "peak memory"]
    rows = []
    for arm in findings.experiment.all_arms:
        if facts := _facts(findings, arm.name):
            cells = [
                _against(mean_quantity(what, facts), mean_quantity(what, base), what, arm.name) for what in QUANTITIES
            ]
            memory, there = (float(np.mean([fact.peak_memory_bytes for fact in group])) for group in (facts, base))
            rows.append([arm.name, *cells, f"{format_bytes(memory)}{_ratio(memory, there, arm.name)}"])
    yield Table(header, rows)
    promised = ", ".join(f"{what} within {100 * share:g}%" for what, share in match.items())
    yield Paragraph(f"To be matched: {promised or 'nothing'}. Means over runs; time is that of training alone.")


def _facts(findings: Findings, arm: str) -> list[Facts]:
    return [run.facts for run in findings.finished_runs(arm) if run.facts is not None]


def _against(value: float, baseline: float, what: str, arm: str) -> str:
    text = format_seconds(value) if what == "time" else format_count(round(value)) if value < 1e15 else f"{value:.4g}"
    return text + _ratio(value, baseline, arm)


def _ratio(value: float, baseline: float, arm: str) -> str:
    return "" if arm == BASELINE or not baseline else f" ({100 * (value / baseline - 1):+.1f}%)"


def _tuning(findings: Findings) -> Iterator[Block]:
    choices = findings.evidence.ledger.choices
    if not choices:
        return
    seeds = ", ".join(map(str, findings.experiment.statement.tune_seeds))
    yield Heading("Tuning")
    yield Paragraph(
        f"Every arm was tuned over the same grid, on seeds that the comparison does not use ({seeds}). Chosen: the "
        "best mean."
    )
    rows = []
    for arm, choice in choices.items():
        for point, value in choice.table:
            setting = ", ".join(f"{key} = {setting}" for key, setting in point.items())
            rows.append((arm, setting, f"{value:.4f}", "chosen" if point == choice.point else ""))
    yield Table(("arm", "grid point", findings.experiment.statement.metric.label, ""), rows, left=2)


def _cost(findings: Findings) -> Iterator[Block]:
    finished = [run for run in findings.runs if run.facts is not None]
    if not finished:
        return
    yield Heading("Cost")
    price = "" if findings.dollars is None else f", {format_dollars(findings.dollars)}"
    extra = [f"{sum(run.use == use for run in finished)} for {name}" for use, name in _EXTRA if _uses(finished, use)]
    among = f" ({', '.join(extra)})" if extra else ""
    text = f"{len(finished)} finished runs{among} took {format_seconds(findings.seconds)} of wall time{price}."
    failed = len(findings.runs) - len(finished)
    if failed:
        text += f" {failed} failed; what those took is not recorded."
    yield Paragraph(text)
    if findings.predictions:
        time, memory = median_ratios(findings.predictions)
        yield Paragraph(
            f"Predicted divided by actual, median of {len(findings.predictions)} runs: time {time:.2f}, peak memory "
            f"{memory:.2f}."
        )


_EXTRA = ((TUNING, "tuning"), (CURVE, "the compute curve"))


def _uses(runs: Sequence[RunRecord], use: str) -> bool:
    return any(run.use == use for run in runs)


def _runs(findings: Findings) -> Iterator[Block]:
    label = findings.experiment.statement.metric.label
    yield Heading("Runs")
    if not findings.runs:
        yield Paragraph("None yet.")
        return
    rows = [
        (
            run.folder.as_posix(),
            run.use,
            run.arm,
            str(run.seed),
            "failed" if run.failure is not None else NONE if run.value is None else f"{run.value:.6g}",
            NONE if run.facts is None else format_seconds(run.facts.wall_seconds),
            NONE if run.facts is None else run.facts.code,
        )
        for run in findings.runs
    ]
    yield Table(("run", "for", "arm", "seed", label, "wall time", "code"), rows, left=3)
    failed = [f"{run.folder.name}: {run.failure.message}" for run in findings.runs if run.failure is not None]
    if failed:
        yield Bullets(failed)


def _reproduction(findings: Findings) -> Iterator[Block]:
    folder = findings.experiment.folder.as_posix()
    yield Heading("Do it again")
    yield Code(f"gptlab run {folder}\ngptlab report {folder}", "sh")
    yield Paragraph("The numbers are also in report.json, runs.csv and differences.csv.")
