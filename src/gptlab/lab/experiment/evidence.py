"""The evidence of an experiment: paired runs, matching, provenance, and the verdict on every arm.

`evaluate_experiment` is a function of the ledger; it touches no file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptlab.errors import GptlabError, option
from gptlab.lab.experiment.ledger import Ledger, RunRecord
from gptlab.lab.experiment.matching import Mismatch, mismatches, provenance_differences
from gptlab.lab.experiment.spec import BASELINE, Arm, Experiment, load_experiment
from gptlab.lab.runs.store import Store
from gptlab.lab.stats.crossed import Estimate, mean_estimate
from gptlab.lab.stats.decision import Decision, Rule, Verdict, decide, seeds_to_verdict
from gptlab.lab.stats.paired import EffectSize, PairedSummary, effect_size, paired_summary
from gptlab.record.facts import Facts
from gptlab.record.measurement import Identity
from gptlab.record.measurement import differences as identity_differences
from gptlab.shown import Sheet, Shown, cells

UNLIKE_MEND = "move the runs of one kind out of runs/ to train them anew, or evaluate both again"


@dataclass(frozen=True)
class Result:
    """A finished run of the comparison, and what it measured."""

    seed: int
    folder: Path
    value: float
    facts: Facts
    identity: Identity | None = None
    parts: tuple[float, ...] = ()  # the numbers that the value is the mean of, one a prompt


@dataclass(frozen=True)
class ArmEvidence:
    """What is known of one arm against the baseline.

    Attributes:
        arm: the arm, tuned where the experiment tunes.
        pairs: (the arm's run, the baseline's), seed by seed, without a gap.
        failures: runs of the arm and of the baseline that diverged.
        unmatched: matched quantities outside their tolerance; a verdict is refused then.
        unlike: "seed 3: validation data ab12 against cd34" for every pair whose values were read from different things;
            a verdict is refused then.
        unknown: pairs of which it is not known what their values were read from (runs of gptlab before 0.4).
        provenance_differences: "seed 3: torch 2.12 against 2.13" for every pair whose runs differ in more than configs.
        decision, effect, summary: the statistics; effect and summary are None before the first pair.
        more_seeds: further pairs to a verdict if they were like those so far; None: not foreseeable.
    """

    arm: Arm
    pairs: list[tuple[Result, Result]]
    failures: list[RunRecord]
    unmatched: list[Mismatch]
    unlike: list[str]
    unknown: int
    provenance_differences: list[str]
    decision: Decision
    effect: EffectSize | None
    summary: PairedSummary | None
    more_seeds: int | None

    @property
    def differences(self) -> NDArray[np.float64]:
        """The arm's metric minus the baseline's, seed by seed."""
        return np.array([arm.value - baseline.value for arm, baseline in self.pairs])

    @property
    def over_prompts(self) -> Estimate | None:
        """The difference with the 95% interval in which it would lie for other prompts and other seeds, not for other
        seeds alone; None where the metric is no mean over prompts, or prompts are missing."""
        parts = [(np.array(arm.parts), np.array(baseline.parts)) for arm, baseline in self.pairs]
        if not parts or len({len(one) for pair in parts for one in pair}) != 1 or not len(parts[0][0]):
            return None
        return mean_estimate(np.stack([arm - baseline for arm, baseline in parts], axis=1))

    @property
    def refusal(self) -> str | None:
        """Why no verdict may be given; None where one may."""
        if self.unlike:
            return f"its runs and the baseline's were measured on different things, {self.unlike[0]}; " + UNLIKE_MEND
        if self.unmatched:
            return "not matched, " + "; ".join(map(str, self.unmatched))
        if self.failures and (failure := self.failures[0].failure) is not None:
            return f"{self.failures[0].folder.name}: {failure.message}"
        return None

    @property
    def verdict(self) -> str:
        """better, worse, no difference that matters, inconclusive; or refused."""
        return "refused" if self.refusal else self.decision.verdict.value

    @property
    def is_decided(self) -> bool:
        """Whether further seeds would change nothing: there is a verdict, or there can be none."""
        return self.refusal is not None or self.decision.verdict is not Verdict.INCONCLUSIVE


@dataclass(frozen=True, repr=False)
class Evidence(Shown):
    """What all runs of an experiment show. `arms` are in the order of the experiment."""

    ledger: Ledger
    rule: Rule
    arms: list[ArmEvidence]

    @property
    def experiment(self) -> Experiment:
        """The experiment."""
        return self.ledger.experiment

    def sheet(self) -> Sheet:
        """A row an arm: the verdict, and the difference from the baseline that it rests on."""
        rows, notes = [], []
        for found in self.arms:
            low, high = found.decision.interval
            interval = f"{low:+.4f} to {high:+.4f}" if low > float("-inf") else "–"
            raw, percent = (None, None) if found.effect is None else (found.effect.raw, found.effect.percent)
            effect = [*cells([raw], "+.4f"), interval, *cells([percent], "+.2f")]
            rows.append([found.arm.name, found.verdict, str(len(found.pairs)), *effect, f"{found.decision.p:.3g}"])
            notes += [f"{found.arm.name}: {found.refusal}"] if found.refusal else []
        label = self.experiment.statement.metric.label
        header = ("arm", "verdict", "seeds", "difference", "interval", "%", "p")
        return Sheet(f"{self.experiment.name}: {label}, arm − baseline", rows, header, notes, left=2)

    def dollars(self, arm: str) -> float | None:
        """What a run of an arm has cost on average; None where no price is known."""
        known = [run.dollars for run in self.ledger.comparison[arm].values() if run.dollars is not None]
        return sum(known) / len(known) if known else None


def evaluate_experiment(ledger: Ledger, *, strict: bool = False) -> Evidence:
    """Pair the runs of an experiment and apply its decision rule.

    Raises GptlabError, with `strict`, where paired runs differ in code, libraries or hardware.
    """
    statement = ledger.experiment.statement
    rule = decision_rule(ledger.experiment, resolution=max((run.resolution for run in ledger.records), default=0.0))
    pairs = {arm.name: list(_pairs(ledger, arm.name)) for arm in ledger.arms}
    # The statement's arms set the levels of the tests, however few of them are run.
    decisions = decide(
        {name: _differences(pairs.get(name, [])) for name in statement.arms},
        rule,
        distinct=[name for name, found in pairs.items() if any(_differ(a.facts, b.facts) for a, b in found)],
    )
    arms = []
    for arm in ledger.arms:
        found = _arm_evidence(ledger, arm, pairs[arm.name], rule, decisions[arm.name])
        if strict and found.provenance_differences:
            raise GptlabError(
                f"arm {arm.name!r}, {found.provenance_differences[0]}; move the older runs out of runs/ to renew them, "
                f"or leave out {option('strict')}"
            )
        arms.append(found)
    return Evidence(ledger, rule, arms)


def read_verdicts(folder: str | Path, *, runs: str | Path = "runs") -> Evidence:
    """What the runs in `runs` show by now of the experiment in `folder`: nothing is trained.

    Raises ConfigError for a statement that is wrong, GptlabError for runs that are damaged.
    """
    return evaluate_experiment(Ledger.read(load_experiment(folder), Store(runs)))


def decision_rule(experiment: Experiment, *, resolution: float = 0.0) -> Rule:
    """The decision rule as the statement fixes it. The number of arms is that of the statement, however few are run.

    `resolution`: the step in which the metric is counted, once it is known.
    """
    decision = experiment.statement.decision
    return Rule.planned(
        seeds=experiment.statement.max_seeds,
        smallest_effect=decision.smallest_effect,
        alpha=decision.alpha,
        lower_is_better=experiment.statement.metric.lower_is_better,
        minimum=decision.minimum_seeds,
        arms=len(experiment.statement.arms),
        resolution=resolution,
    )


def _pairs(ledger: Ledger, arm: str) -> Iterator[tuple[Result, Result]]:
    """Pairs in the order of the seeds, up to the first that is still to be trained: which runs end first must not
    choose. A seed whose run was finished once and is another run by now leaves a gap, and the others count."""
    for seed, record in ledger.comparison[arm].items():
        other = ledger.comparison[BASELINE][seed]
        ours, theirs = _result(record), _result(other)
        if ours is not None and theirs is not None:
            yield ours, theirs
        elif not (record.lost or other.lost):
            return


def _result(record: RunRecord) -> Result | None:
    if record.value is None or record.facts is None:
        return None
    return Result(record.seed, record.folder, record.value, record.facts, record.identity, record.parts)


def _differ(ours: Facts, theirs: Facts) -> bool:
    """Whether two runs are known to have come to different weights."""
    return None not in (ours.weights, theirs.weights) and ours.weights != theirs.weights


def _differences(pairs: list[tuple[Result, Result]]) -> list[float]:
    return [arm.value - baseline.value for arm, baseline in pairs]


def _arm_evidence(
    ledger: Ledger, arm: Arm, pairs: list[tuple[Result, Result]], rule: Rule, decision: Decision
) -> ArmEvidence:
    statement = ledger.experiment.statement
    ours, theirs = [a.facts for a, _ in pairs], [b.facts for _, b in pairs]
    differences = _differences(pairs)
    return ArmEvidence(
        arm=arm,
        pairs=pairs,
        failures=[run for name in (BASELINE, arm.name) for run in ledger.comparison[name].values() if run.failure],
        unmatched=mismatches(ours, theirs, statement.match) if pairs else [],
        unlike=[
            f"seed {a.seed}: {difference}"
            for a, b in pairs
            if a.identity is not None and b.identity is not None
            for difference in identity_differences(a.identity, b.identity, by_byte=statement.metric.is_by_byte)
        ],
        unknown=sum(a.identity is None or b.identity is None for a, b in pairs),
        provenance_differences=[
            f"seed {a.seed}: {difference}" for a, b in pairs for difference in provenance_differences(a.facts, b.facts)
        ],
        decision=decision,
        effect=effect_size([a.value for a, _ in pairs], [b.value for _, b in pairs]) if pairs else None,
        summary=paired_summary(differences) if pairs else None,
        more_seeds=seeds_to_verdict(differences, rule, arms=len(statement.arms)) if len(pairs) >= 2 else None,
    )
