"""Which runs an experiment still needs, in the order of their worth, and what they will take."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptlab.config import dump_yaml
from gptlab.console import progress
from gptlab.errors import GptlabError
from gptlab.lab.experiment.evidence import curve_runs, gather, run_of, tuning_runs
from gptlab.lab.experiment.matching import Mismatch, differs
from gptlab.lab.experiment.spec import Arm, Experiment, Matched
from gptlab.lab.runs.execution import unique
from gptlab.lab.runs.store import Store, Wanted
from gptlab.planning.plan import Prediction, keep_plan, kept_plan, plan_in_subprocess
from gptlab.record.facts import read_facts


def still_needed(
    experiment: Experiment, store: Store, *, seeds: int | None = None, strict: bool = False
) -> list[Wanted]:
    """The runs that are missing: those that tune; then seed by seed every arm that has no verdict yet; then the lengths
    of the compute curve. A run that failed is not asked for again. `seeds`: no more than so many of the seeds.
    """
    wanted = _comparison_runs(experiment, store, seeds, strict)
    return [run for run in unique(iter(wanted)) if store.finished(run) is None and not _failed(store, run)]


def _comparison_runs(experiment: Experiment, store: Store, seeds: int | None, strict: bool) -> list[Wanted]:
    tuning = [run for _, _, run in tuning_runs(experiment)]
    if any(store.finished(run) is None and not _failed(store, run) for run in tuning):
        return tuning  # which values the comparison will use is not known before
    evidence = gather(experiment, store, strict=strict)
    arms = [evidence.baseline, *(found.arm for found in evidence.arms if not found.settled)]
    order = experiment.statement.all_seeds[:seeds] if len(arms) > 1 else []
    runs = [run_of(experiment, arm, seed) for seed in order for arm in arms]
    return [*runs, *curve_runs(experiment, evidence.baseline)]


def _failed(store: Store, run: Wanted) -> bool:
    return store.failure(store.folder(run)) is not None


@dataclass(frozen=True)
class Outlook:
    """What the runs that may still be needed will take, were every seed needed.

    Attributes:
        runs: how many are missing, by arm (tuning runs and the compute curve are counted with theirs).
        reused: how many are there already.
        seconds, dollars: in all, on one device at a time; None where nothing says so.
        peak_memory: bytes of the largest.
    """

    runs: dict[str, int]
    reused: int
    seconds: float | None
    dollars: float | None
    peak_memory: int | None


def outlook(
    experiment: Experiment,
    store: Store,
    missing: Sequence[Wanted],
    predictions: dict[str, Prediction],
    rate: float | None,
) -> Outlook:
    """What `missing` will take by `predictions`, which are by the hash of a run."""
    found = [predictions.get(run.hash) for run in missing]
    known = [prediction for prediction in found if prediction is not None]
    complete = len(known) == len(missing) and bool(missing)
    seconds = sum(p.seconds for p in known) if complete else None
    every = {
        run_of(experiment, arm, seed).suffix: run_of(experiment, arm, seed)
        for arm in experiment.all_arms
        for seed in experiment.statement.all_seeds
    }
    return Outlook(
        runs=dict(Counter(run.arm for run in missing)),
        reused=sum(store.finished(run) is not None for run in every.values()),
        seconds=seconds,
        dollars=None if seconds is None or rate is None else seconds * rate / 3600,
        peak_memory=max((p.peak_memory for p in known), default=None),
    )


def predict(missing: Iterable[Wanted], store: Store, *, probe: bool) -> dict[str, Prediction]:
    """What each of the runs will take, by its hash: as its finished twins took; else as a short probe here says.

    Probes are kept in the store, one a config. Raises GptlabError where a probe fails: the run would, too.
    """
    found: dict[str, Prediction] = {}
    todo = {run.hash: run for run in missing}
    with progress(unit="configs", transient=True) as bar:
        task = bar.add_task("measuring speed", total=len(todo))
        for digest, run in todo.items():
            known = _by_twins(store, digest) or _kept(store, digest)
            if known is None and probe:
                known = _probe(store, run)
            if known is not None:
                found[digest] = known
            bar.advance(task)
    return found


def foresee(experiment: Experiment, store: Store) -> dict[str, list[Mismatch]]:
    """By arm, what will not be matched as promised, as far as the plans tell before anything is trained."""
    sizes = {arm.name: _sizes(store, arm) for arm in experiment.all_arms}
    promised = experiment.statement.match
    found = {}
    for arm in experiment.arms:
        pairs = {what: (sizes[arm.name].get(what), sizes["baseline"].get(what)) for what in promised}
        found[arm.name] = [
            Mismatch(what, a, b, promised[what])
            for what, (a, b) in pairs.items()
            if a is not None and b is not None and differs(a, b, promised[what])
        ]
    return {name: wrong for name, wrong in found.items() if wrong}


def _sizes(store: Store, arm: Arm) -> dict[Matched, float]:
    """Parameters, FLOPs and tokens of an arm's runs, by its plan; empty where there is none."""
    if (plan := kept_plan(store.root, arm.hash)) is None:
        return {}
    return {"parameters": float(plan.footprint.parameters), "flops": plan.flops, "tokens": float(plan.tokens)}


def _by_twins(store: Store, digest: str) -> Prediction | None:
    """The same config with other seeds, trained in one go."""
    for folder in sorted(store.root.glob(f"*-{digest}-seed*")):
        if store.is_finished(folder):
            facts = read_facts(folder)
            if facts.sessions == 1:
                return Prediction(
                    facts.hardware, "twin", facts.seconds, facts.wall_seconds, facts.peak_memory_bytes, None
                )
    return None


def _kept(store: Store, digest: str) -> Prediction | None:
    plan = kept_plan(store.root, digest)
    return None if plan is None else plan.prediction()


def _probe(store: Store, run: Wanted) -> Prediction | None:
    with tempfile.TemporaryDirectory(prefix="gptlab-plan-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(dump_yaml(run.config.plain()), encoding="utf-8")
        try:
            plan = plan_in_subprocess(path)
        except GptlabError as error:
            raise GptlabError(f"{run.label}: {error}") from None
    keep_plan(store.root, run.hash, plan)
    return plan.prediction()
