"""What the runs of an experiment say so far: pairs, fairness, provenance, and the verdict on every arm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptlab.errors import GptlabError
from gptlab.hardware.gpus import gpu_of_driver, read_gpus
from gptlab.lab.experiment.matching import Mismatch, mismatches, provenance
from gptlab.lab.experiment.spec import Arm, Experiment, tuned, with_seed
from gptlab.lab.runs.store import Failure, Store, Wanted
from gptlab.lab.stats import statistics
from gptlab.record.facts import Facts, read_facts


@dataclass(frozen=True)
class Result:
    """A finished run of an arm, and what it measured."""

    arm: str
    seed: int
    folder: Path
    value: float
    facts: Facts


@dataclass(frozen=True)
class ArmEvidence:
    """Everything that is known of one arm against the baseline.

    Attributes:
        arm: the arm, tuned where the experiment tunes.
        pairs: (the arm's run, the baseline's), seed by seed, without a gap.
        failures: runs of the arm that cannot be finished.
        unmatched: what the experiment says is equal and is not; a verdict is refused then.
        foreign: "seed 3: torch 2.12 against 2.13" for every pair that differs in more than the configs say.
        decision, effect, summary: the statistics; None before the first pair.
        more_seeds: how many further pairs would settle it if they were like those so far; None: not foreseeable.
    """

    arm: Arm
    pairs: list[tuple[Result, Result]]
    failures: list[Failure]
    unmatched: list[Mismatch]
    foreign: list[str]
    decision: statistics.Decision
    effect: statistics.EffectSize | None
    summary: statistics.PairedSummary | None
    more_seeds: int | None

    @property
    def differences(self) -> NDArray[np.float64]:
        """The arm's metric minus the baseline's, seed by seed."""
        return np.array([arm.value - baseline.value for arm, baseline in self.pairs])

    @property
    def refusal(self) -> str | None:
        """Why there is no verdict, where there may be none."""
        if self.unmatched:
            return "not matched, " + "; ".join(map(str, self.unmatched))
        if self.failures:
            return f"{self.failures[0].folder.name}: {self.failures[0].reason}"
        return None

    @property
    def verdict(self) -> str:
        """better, worse, no difference that matters, inconclusive; or refused."""
        return "refused" if self.refusal else self.decision.verdict.value

    @property
    def settled(self) -> bool:
        """Whether further seeds would change nothing: there is a verdict, or there can be none."""
        return self.refusal is not None or self.decision.verdict is not statistics.Verdict.INCONCLUSIVE


@dataclass(frozen=True)
class Evidence:
    """What all runs of an experiment say."""

    experiment: Experiment
    rule: statistics.Rule
    baseline: Arm
    arms: list[ArmEvidence]
    results: dict[str, dict[int, Result]]  # by arm, the baseline among them, and seed
    choices: dict[str, TuningChoice]  # by arm; empty where nothing is tuned

    def dollars(self, arm: str) -> float | None:
        """What a run of an arm has cost on average; None where no price is known."""
        costs = [run_dollars(self.experiment, result.facts) for result in self.results[arm].values()]
        known = [cost for cost in costs if cost is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class TuningChoice:
    """The point of the grid that an arm takes into the comparison."""

    point: dict[str, object]
    value: float  # mean of the metric over the tuning seeds
    table: list[tuple[dict[str, object], float]]  # every point and its mean

    @property
    def edges(self) -> list[str]:
        """Where the best is the last of its grid, so that a better one may lie beyond: `optimizer.lr = x0.25`."""
        found = []
        for key, chosen in self.point.items():
            sizes = sorted({size for point, _ in self.table if (size := _size(point[key])) is not None})
            if len(sizes) > 1 and _size(chosen) in (sizes[0], sizes[-1]):
                found.append(f"{key} = {chosen}")
        return found


def _size(value: object) -> float | None:
    """A number, or the factor of `x0.5`; None for what has no size."""
    if isinstance(value, str):
        try:
            return float(value.strip().lstrip("x×"))
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def gather(experiment: Experiment, store: Store, *, strict: bool = False) -> Evidence:
    """Read the runs of an experiment and judge them.

    Raises GptlabError for a run whose files are damaged or that lacks the metric; with `strict` also where paired runs
    differ in code, libraries or hardware.
    """
    choices = choose(experiment, store)
    arms = {arm.name: tuned(arm, choices[arm.name].point) if choices else arm for arm in experiment.all_arms}
    waiting = bool(experiment.grid) and not choices
    results: dict[str, dict[int, Result]] = {name: {} for name in arms}
    failures: dict[str, list[Failure]] = {name: [] for name in arms}
    for name, arm in arms.items() if not waiting else ():
        for seed in experiment.statement.all_seeds:
            wanted = run_of(experiment, arm, seed)
            if (folder := store.finished(wanted)) is not None:
                value = experiment.statement.metric.value(folder)
                results[name][seed] = Result(name, seed, folder, value, read_facts(folder))
            elif (failed := store.failure(store.folder(wanted))) is not None:
                failures[name].append(failed)
    rule = rule_of(experiment)
    pairs = {name: list(_pairs(experiment, results, name)) for name in arms if name != "baseline"}
    differences = {name: [a.value - b.value for a, b in pairs.get(name, [])] for name in experiment.statement.arms}
    decisions = statistics.decide(differences, rule)
    found = [
        _arm_evidence(experiment, arms[arm.name], pairs[arm.name], failures, rule, decisions[arm.name], strict)
        for arm in experiment.arms
    ]
    return Evidence(experiment, rule, arms["baseline"], found, results, choices)


def rule_of(experiment: Experiment) -> statistics.Rule:
    """The decision rule as the statement fixes it. The number of arms is that of the statement, however few are run."""
    decision = experiment.statement.decision
    return statistics.Rule.planned(
        seeds=experiment.statement.most_seeds,
        smallest_effect=decision.smallest_effect,
        alpha=decision.alpha,
        lower_is_better=experiment.statement.metric.lower_is_better,
        minimum=decision.minimum_seeds,
        arms=len(experiment.statement.arms),
    )


def run_of(experiment: Experiment, arm: Arm, seed: int) -> Wanted:
    """The run of an arm with a seed."""
    accuracy = experiment.statement.metric.accuracy
    return Wanted(arm.seeded(seed), arm.hash, f"{arm.name} seed {seed}", (accuracy,) if accuracy else (), arm.name)


def _pairs(experiment: Experiment, results: dict[str, dict[int, Result]], name: str) -> Iterator[tuple[Result, Result]]:
    """Pairs in the order of the seeds, up to the first that is missing: which runs end first must not choose."""
    for seed in experiment.statement.all_seeds:
        if seed not in results[name] or seed not in results["baseline"]:
            return
        yield results[name][seed], results["baseline"][seed]


def _arm_evidence(
    experiment: Experiment,
    arm: Arm,
    pairs: list[tuple[Result, Result]],
    failures: dict[str, list[Failure]],
    rule: statistics.Rule,
    decision: statistics.Decision,
    strict: bool,
) -> ArmEvidence:
    foreign = [f"seed {a.seed}: {difference}" for a, b in pairs for difference in provenance(a.facts, b.facts)]
    if strict and foreign:
        raise GptlabError(
            f"arm {arm.name!r}, {foreign[0]}; move the older runs out of runs/ to renew them, or leave out --strict"
        )
    values = np.array([(a.value, b.value) for a, b in pairs]).reshape(-1, 2)
    unmatched = (
        mismatches([a.facts for a, _ in pairs], [b.facts for _, b in pairs], experiment.statement.match)
        if pairs
        else []
    )
    return ArmEvidence(
        arm=arm,
        pairs=pairs,
        failures=[*failures["baseline"], *failures[arm.name]],
        unmatched=unmatched,
        foreign=foreign,
        decision=decision,
        effect=statistics.effect_size(values[:, 0], values[:, 1]) if pairs else None,
        summary=statistics.paired_summary(values[:, 0] - values[:, 1]) if pairs else None,
        more_seeds=statistics.seeds_to_settle(values[:, 0] - values[:, 1], rule, arms=len(experiment.statement.arms))
        if len(pairs) >= 2
        else None,
    )


def tuning_runs(experiment: Experiment) -> Iterator[tuple[str, int, Wanted]]:
    """(arm, index of the grid point, run) for every tuning run: each arm the same grid on the same seeds."""
    for number, point in enumerate(experiment.grid):
        for seed in experiment.statement.tune_seeds:
            for arm in experiment.all_arms:
                setting = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in point.items())
                run = run_of(experiment, tuned(arm, point), seed)
                yield arm.name, number, replace(run, label=f"tune {arm.name} {setting} seed {seed}")


def choose(experiment: Experiment, store: Store) -> dict[str, TuningChoice]:
    """Each arm's best point of the grid by the mean metric over the tuning seeds; empty until every run is there.

    A run that cannot be finished counts as the worst there is. Raises GptlabError where an arm has no other.
    """
    if not experiment.grid:
        return {}
    metric = experiment.statement.metric
    worst = float("inf") if metric.lower_is_better else float("-inf")
    values: dict[tuple[str, int], list[float]] = {}
    for arm, number, wanted in tuning_runs(experiment):
        if (folder := store.finished(wanted)) is not None:
            value = metric.value(folder)
        elif store.failure(store.folder(wanted)) is not None:
            value = worst
        else:
            return {}
        values.setdefault((arm, number), []).append(value)
    chosen = {}
    for name in (arm.name for arm in experiment.all_arms):
        table = [(point, float(np.mean(values[name, number]))) for number, point in enumerate(experiment.grid)]
        best = (min if metric.lower_is_better else max)(table, key=lambda row: row[1])
        if not np.isfinite(best[1]):
            raise GptlabError(f"arm {name!r}: no tuning run of it could be finished; try other values in `tune`")
        chosen[name] = TuningChoice(*best, table)
    return chosen


def curve_runs(experiment: Experiment, baseline: Arm) -> Iterator[Wanted]:
    """The baseline at the lengths of `compute_curve`."""
    from gptlab.config.load import override
    from gptlab.lab.experiment.spec import hash_of

    curve = experiment.statement.compute_curve
    for tokens in curve.tokens if curve is not None else ():
        config = override(baseline.config, [f"train.tokens={tokens}"], {})
        digest = hash_of(config)
        for seed in curve.seeds if curve is not None else ():
            seeded = with_seed(config, init=seed, data=seed, dropout=seed)
            yield Wanted(seeded, digest, f"baseline, {tokens} tokens, seed {seed}", arm=baseline.name)


def run_dollars(experiment: Experiment, facts: Facts) -> float | None:
    """What a run has cost: its hours times the price of the hardware; None where nobody says one."""
    rate = experiment.statement.dollars_per_hour
    if rate is None:
        card = gpu_of_driver(facts.hardware, read_gpus())
        rate = card.dollars_per_hour if card is not None else None
    return None if rate is None else rate * facts.world_size * facts.wall_seconds / 3600
