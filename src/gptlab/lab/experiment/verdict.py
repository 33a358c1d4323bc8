"""Verdicts as text: the conclusion on an arm, the effect size, the number of seeds, and what would settle the rest."""

from __future__ import annotations

from gptlab.lab.experiment.evidence import ArmEvidence, Evidence
from gptlab.planning.formatting import format_dollars


def verdict_line(evidence: Evidence, found: ArmEvidence) -> str:
    """The verdict on an arm in a line."""
    name = found.arm.name
    if found.refusal is not None:
        return f"{name}: no verdict, {found.refusal}"
    if not found.pairs:
        return f"{name}: inconclusive, no seed is finished yet"
    text = f"{name}: {found.verdict} after {_count(len(found.pairs), 'seed')}"
    text += f", {format_effect(evidence, found)}"
    return text + (f"; {seeds_needed(evidence, found)}" if not found.is_decided else "")


def format_effect(evidence: Evidence, found: ArmEvidence) -> str:
    """The difference in the metric's units with its interval, in percent, and in units of seed noise."""
    assert found.effect is not None
    low, high = found.decision.interval
    interval = f" [{low:+.4g}, {high:+.4g}]" if low > float("-inf") else ""
    parts = [f"{found.effect.raw:+.4g}{interval}"]
    if found.effect.percent is not None:
        parts.append(f"{found.effect.percent:+.2f}%")
    if found.effect.noise_units is not None:
        parts.append(f"{found.effect.noise_units:+.1f} times the seed noise")
    return f"{evidence.experiment.statement.metric.label} {', '.join(parts)}"


def seeds_needed(evidence: Evidence, found: ArmEvidence) -> str:
    """The number and price of further seeds until a verdict, if they were like those so far."""
    if found.decision.n < evidence.rule.minimum:
        return f"no verdict before {evidence.rule.minimum} seeds"
    if found.more_seeds is None:
        return "more seeds like these would not settle it"
    costs = [evidence.dollars(found.arm.name), evidence.dollars("baseline")]
    price = f", {format_dollars(found.more_seeds * sum(c for c in costs if c))}," if all(costs) else ""
    return f"about {_count(found.more_seeds, 'more seed')}{price} would settle it"


def verdict_notes(evidence: Evidence, found: ArmEvidence) -> list[str]:
    """Remarks beside the verdict: its reasons, tuning, and warnings."""
    said = [found.decision.sentence] if found.refusal is None and found.pairs else []
    if (wider := found.over_prompts) is not None and wider.low is not None:
        said.append(
            f"the verdict is on these prompts; with others as well as other seeds the difference lies in "
            f"[{wider.low:+.3g}, {wider.high:+.3g}] (95%)"
        )
    if evidence.ledger.choices:
        point = evidence.ledger.choices[found.arm.name].point
        said.append("tuned: " + ", ".join(f"{key} = {value}" for key, value in point.items()))
        said += grid_edge_warnings(evidence, found.arm.name)
    if shared := found.arm.shared_documents:
        documents = f"{_count(shared, 'document')} {'is' if shared == 1 else 'are'}"
        said.append(
            f"careful: of the validation text {documents} training text too; what was learnt by heart counts as learnt"
        )
    if found.unknown:
        said.append(
            f"careful: of {_count(found.unknown, 'pair')} it is not known what the metric was read from (trained or "
            "evaluated by gptlab before 0.4)"
        )
    if found.provenance_differences:
        more = f" (and {len(found.provenance_differences) - 1} more)" if len(found.provenance_differences) > 1 else ""
        said.append(f"careful: paired runs differ in more than the arm, {found.provenance_differences[0]}{more}")
    return said


def grid_edge_warnings(evidence: Evidence, arm: str) -> list[str]:
    """A warning for the baseline and for an arm where its tuned value is on the edge of the grid."""
    return [
        f"careful: {name} is best at the edge of its grid ({', '.join(found)}), so a wider one may make it better"
        for name in ("baseline", arm)
        if (found := evidence.ledger.choices[name].on_grid_edge)
    ]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
