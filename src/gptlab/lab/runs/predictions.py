"""What runs that are not trained yet will take: from finished runs of the same config, a kept plan, or a probe."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from gptlab.config import dump_yaml
from gptlab.console import progress
from gptlab.errors import GptlabError
from gptlab.lab.runs.store import RunSpec, Store
from gptlab.planning.plan import Plan, Prediction
from gptlab.planning.records import keep_plan, kept_plan
from gptlab.planning.subprocesses import plan_in_subprocess
from gptlab.record.facts import read_facts


def predict_runs(runs: Iterable[RunSpec], store: Store, *, probe: bool) -> dict[str, Prediction]:
    """Predictions by hash: from a finished run of the config with another seed, else its kept plan, else a probe here.

    Probes are kept in the store, a plan for each config; one probe serves all configs that do the same work. Without
    `probe` configs of which nothing is known are left out. Raises GptlabError where a probe fails: the run would, too.
    """
    found: dict[str, Prediction] = {}
    probed: dict[str, Plan] = {}
    todo = {run.hash: run for run in runs}
    with progress(unit="configs", transient=True) as bar:
        task = bar.add_task("measuring speed", total=len(todo))
        for digest, run in todo.items():
            known = _from_other_seeds(store, digest) or _from_plan(kept_plan(store.root, digest))
            if known is None and probe:
                work = _work(run)
                probed[work] = probed.get(work) or _probe(run)
                keep_plan(store.root, digest, probed[work])
                known = _from_plan(probed[work])
            if known is not None:
                found[digest] = known
            bar.advance(task)
    return found


def kept_plans(hashes: Iterable[str], store: Store) -> dict[str, Plan]:
    """The plans that are kept in the store, by hash."""
    plans = {digest: kept_plan(store.root, digest) for digest in hashes}
    return {digest: plan for digest, plan in plans.items() if plan is not None}


def _from_other_seeds(store: Store, digest: str) -> Prediction | None:
    """From a run of the same config that was trained in one session."""
    for folder in sorted(store.root.glob(f"*-{digest}-seed*")):
        if store.is_finished(folder):
            facts = read_facts(folder)
            if facts.sessions == 1:
                return Prediction(
                    facts.hardware, "twin", facts.seconds, facts.wall_seconds, facts.peak_memory_bytes, None
                )
    return None


def _from_plan(plan: Plan | None) -> Prediction | None:
    return None if plan is None else plan.prediction()


def _work(run: RunSpec) -> str:
    """The config of a run without what changes its numbers and not its work: rates, decays, and other such fractions of
    optimizer and schedule. The points of a grid of rates are all one."""
    plain = {key: value for key, value in run.config.plain().items() if key not in ("name", "seed")}
    for section in ("optimizer", "schedule"):
        plain[section] = {key: value for key, value in plain[section].items() if not isinstance(value, float)}
    return dump_yaml(plain)


def _probe(run: RunSpec) -> Plan:
    with tempfile.TemporaryDirectory(prefix="gptlab-plan-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(dump_yaml(run.config.plain()), encoding="utf-8")
        try:
            return plan_in_subprocess(path)
        except GptlabError as error:
            raise GptlabError(f"{run.label}: {error}") from None
