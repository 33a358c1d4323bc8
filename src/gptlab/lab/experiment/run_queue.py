"""The run queue of an experiment: which runs are missing, in the order of their worth, and what they will cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gptlab.errors import GptlabError
from gptlab.lab.experiment.evidence import Evidence
from gptlab.lab.experiment.ledger import Ledger
from gptlab.lab.experiment.matching import Mismatch, exceeds_tolerance
from gptlab.lab.experiment.spec import BASELINE, Experiment, Quantity
from gptlab.lab.runs.store import RunSpec
from gptlab.planning.plan import Plan, Prediction
from gptlab.record.measurement import differences


def missing_runs(evidence: Evidence, *, seeds: int | None = None) -> list[RunSpec]:
    """The runs to train, in order: tuning; then seed by seed every arm without a verdict; then the compute curve.

    A run that diverged is not asked for again. `seeds`: only the first so many of the comparison's seeds. Raises
    GptlabError where runs are missing, and those that are there were validated on other data than these would be.
    """
    ledger = evidence.ledger
    if any(record.is_missing for record in ledger.tuning):  # the arms of the comparison are not known before
        candidates = ledger.tuning
    else:
        undecided = [found.arm.name for found in evidence.arms if not found.is_decided]
        order = ledger.experiment.statement.all_seeds[:seeds] if undecided else []
        candidates = [ledger.comparison[name][seed] for seed in order for name in (BASELINE, *undecided)] + ledger.curve
    missing: dict[str, RunSpec] = {}
    for record in candidates:
        if record.is_missing:
            missing.setdefault(record.spec.suffix, record.spec)
    if missing:
        _check_measured_alike(ledger)
    return list(missing.values())


def _check_measured_alike(ledger: Ledger) -> None:
    """What is trained next must be measured as what is there was."""
    metric = ledger.experiment.statement.metric
    if metric.is_evaluated:
        return  # what the questions are is known when they are asked
    now = {arm.name: arm.measured_on for arm in ledger.experiment.all_arms}
    for record in ledger.records:
        if record.identity and (changed := differences(record.identity, now[record.arm], by_byte=metric.is_by_byte)):
            raise GptlabError(
                f"{record.folder} was validated on something else than the runs to come would be, {changed[0]}; put "
                f"the data back as they were, or move the older runs out of {record.folder.parent} to train them anew"
            )


@dataclass(frozen=True)
class CostEstimate:
    """What the missing runs will cost if every seed is needed.

    Attributes:
        runs: how many are missing, by arm (tuning runs and the compute curve are counted with theirs).
        reused: finished runs of the comparison.
        seconds, dollars: of all missing runs, on one device at a time; None where nothing predicts them.
        peak_memory: bytes, of the largest run.
    """

    runs: dict[str, int]
    reused: int
    seconds: float | None
    dollars: float | None
    peak_memory: int | None


def estimate_cost(
    ledger: Ledger, missing: Sequence[RunSpec], predictions: Mapping[str, Prediction], rate: float | None
) -> CostEstimate:
    """What `missing` will cost by `predictions` (by hash), at `rate` dollars an hour."""
    found = [predictions.get(run.hash) for run in missing]
    known = [prediction for prediction in found if prediction is not None]
    seconds = sum(p.seconds for p in known) if missing and len(known) == len(missing) else None
    return CostEstimate(
        runs=dict(Counter(run.arm for run in missing)),
        reused=sum(run.finished for by_seed in ledger.comparison.values() for run in by_seed.values()),
        seconds=seconds,
        dollars=None if seconds is None or rate is None else seconds * rate / 3600,
        peak_memory=max((p.peak_memory for p in known), default=None),
    )


def predict_mismatches(experiment: Experiment, plans: Mapping[str, Plan]) -> dict[str, list[Mismatch]]:
    """By arm, matched quantities that will be outside their tolerance, as far as `plans` (by hash) tell."""
    match = experiment.statement.match
    sizes = {arm.name: _quantities(plans.get(arm.hash)) for arm in experiment.all_arms}
    found = {}
    for arm in experiment.arms:
        pairs = {what: (sizes[arm.name].get(what), sizes[BASELINE].get(what)) for what in match}
        found[arm.name] = [
            Mismatch(what, a, b, match[what])
            for what, (a, b) in pairs.items()
            if a is not None and b is not None and exceeds_tolerance(a, b, match[what])
        ]
    return {name: wrong for name, wrong in found.items() if wrong}


def _quantities(plan: Plan | None) -> dict[Quantity, float]:
    """Parameters, FLOPs and tokens of a run by its plan; empty where there is none."""
    if plan is None:
        return {}
    return {"parameters": float(plan.footprint.parameters), "flops": plan.flops, "tokens": float(plan.tokens)}
