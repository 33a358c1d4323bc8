"""Verdicts: the rule by hand, its sentences, its errors in simulation, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lab.samples import RULE, sample

from gptlab.errors import GptlabError
from gptlab.lab.stats.decision import Rule, Verdict, decide, holm, seeds_to_verdict
from gptlab.lab.stats.sequential import critical_t, prior_variance, sequential_test


def test_holm_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, and the last not below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("mean", "lower_is_better", "verdict"),
    [
        (-0.1, True, Verdict.BETTER),
        (0.1, True, Verdict.WORSE),
        (0.1, False, Verdict.BETTER),
        (-0.1, False, Verdict.WORSE),
        (0.0, True, Verdict.INCONCLUSIVE),
    ],
)
def test_the_sign_of_better(mean: float, lower_is_better: bool, verdict: Verdict) -> None:
    rule = Rule(0.05, 0.01, 2.0, lower_is_better)
    found = decide({"arm": sample(6, mean, 0.02)}, rule)["arm"]
    assert found.verdict is verdict
    assert found.sentence.startswith(f"{verdict.value}: ")
    assert (found.n, found.mean, found.sd) == (6, pytest.approx(mean, abs=1e-12), pytest.approx(0.02))


def test_sentences_are_for_people() -> None:
    rule = Rule.planned(seeds=4, smallest_effect=0.05, arms=3)
    decided = decide({"a": [-0.1, -0.102, -0.099, -0.101], "b": [0.001, -0.002, 0.0, 0.001], "c": [0.3]}, rule)
    assert decided["a"].sentence == (
        "better: 0.101 lower on average over 4 seeds; with 95% confidence for all 3 arms together "
        f"{-decided['a'].interval.high:.3g} to {-decided['a'].interval.low:.3g} lower."
    )
    assert decided["b"].sentence.endswith("inside the ±0.05 that matters.")
    assert decided["c"].sentence == "inconclusive: 1 of at least 3 pairs of runs so far."
    small = decide({"a": [-0.1, -0.102, -0.099, -0.101]}, Rule.planned(seeds=4, smallest_effect=0.1))["a"]
    assert small.verdict is Verdict.BETTER
    assert small.sentence.endswith("lower, perhaps less than the 0.1 that matters.")


def test_what_is_sure_but_small_does_not_matter() -> None:
    found = decide({"arm": sample(8, -0.002, 0.0005)}, RULE)["arm"]
    assert found.p < 0.01
    assert found.interval.high < 0
    assert found.verdict is Verdict.NO_DIFFERENCE


def test_nothing_is_said_before_the_minimum() -> None:
    d = sample(4, -1.0, 0.001)
    assert decide({"arm": d}, Rule(0.05, 0.01, 20.0, minimum=4))["arm"].verdict is Verdict.BETTER
    assert decide({"arm": d}, Rule(0.05, 0.01, 20.0, minimum=5))["arm"].verdict is Verdict.INCONCLUSIVE
    nothing = decide({"arm": []}, RULE)["arm"]
    assert (nothing.verdict, nothing.n, nothing.mean, nothing.p) == (Verdict.INCONCLUSIVE, 0, None, 1.0)


@pytest.mark.filterwarnings("error")
def test_equal_differences_are_no_evidence() -> None:
    found = decide({"same": [0.0] * 5, "shifted": [0.1] * 5, "rounded": [0.1 + 0.2, 0.3, 0.3]}, RULE)
    assert found["same"].verdict is Verdict.NO_DIFFERENCE
    assert "trains the same runs" in found["same"].sentence
    for arm in ("shifted", "rounded"):
        assert (found[arm].verdict, found[arm].p, found[arm].constant) == (Verdict.INCONCLUSIVE, 1.0, True)
        assert found[arm].interval == (-math.inf, math.inf)
        assert "which noise does not do" in found[arm].sentence
    # Zeros first and then a difference: the zeros have not narrowed anything.
    course = sequential_test([0.0, 0.0, 0.0, 0.2], g=3.0, alpha=0.05)
    assert (course.low[2], course.high[2]) == (-math.inf, math.inf)
    assert not course.contradicted.any()


def test_a_contradiction_is_said() -> None:
    d = np.concatenate([sample(6, 1.0, 0.01), sample(40, 0.0, 0.01)])
    found = decide({"arm": d}, RULE)["arm"]
    assert found.contradicted
    assert found.interval.low > found.interval.high
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "excludes each other" in found.sentence
    assert seeds_to_verdict(d, RULE) is None


def test_evidence_on_both_sides_is_no_verdict() -> None:
    # Strong evidence below 0, then a mean above it: p stays small, the sides do not agree.
    d = np.concatenate([sample(6, -1.0, 0.1), sample(2, 5.0, 3.0)])
    course = sequential_test(d, g=2.0, alpha=0.05).last()
    assert course.p < 0.05
    assert (course.side, np.sign(course.mean)) == (-1, 1)
    assert decide({"arm": d}, RULE)["arm"].verdict is Verdict.INCONCLUSIVE


def test_holm_lets_the_second_arm_in() -> None:
    strong = sample(8, -1.0, 0.1)
    level = next(
        m for m in np.linspace(0.2, 1, 400) if sequential_test(sample(8, -m, 0.5), g=2.0, alpha=0.05).p[-1] < 0.04
    )
    d = sample(8, -level, 0.5)
    rule = Rule(0.05, 0.01, 2.0)
    both = decide({"strong": strong, "weak": d}, rule)
    assert both["weak"].verdict is Verdict.BETTER
    assert both["weak"].interval.high > 0
    assert "the sign is sure, the size" in both["weak"].sentence
    assert decide({"strong": sample(8, 0.0, 1.0), "weak": d}, rule)["weak"].verdict is Verdict.INCONCLUSIVE


def test_errors_of_a_family_of_arms_are_rare() -> None:
    # Three arms on one baseline, peeked at after every seed: no effect, one that matters, one just below that.
    rng, rule = np.random.default_rng(8), Rule.planned(seeds=8, smallest_effect=1.0, arms=3)
    true = {"none": 0.0, "large": -2.5, "edge": 1.0}
    experiments, wrong = 300, 0
    for _ in range(experiments):
        baseline = rng.standard_normal(10)
        d = {arm: rng.normal(mean, 0.6, 10) - 0.6 * baseline for arm, mean in true.items()}
        said: dict[str, set[Verdict]] = {arm: set() for arm in true}
        for n in range(3, 11):
            for arm, found in decide({arm: row[:n] for arm, row in d.items()}, rule).items():
                said[arm].add(found.verdict)
        wrong += bool(
            said["none"] & {Verdict.BETTER, Verdict.WORSE}
            or said["large"] & {Verdict.WORSE, Verdict.NO_DIFFERENCE}
            or said["edge"] & {Verdict.BETTER, Verdict.NO_DIFFERENCE}
        )
    assert wrong <= 0.05 * experiments


def test_seeds_to_verdict_looks_ahead() -> None:
    d = sample(4, -0.02, 0.02, seed=2)
    more = seeds_to_verdict(d, RULE)
    n = np.arange(5, 70)
    reach = critical_t(n, RULE.g, RULE.alpha) * 0.02 / np.sqrt(n)
    assert more == n[np.argmax(reach <= 0.02)] - 4
    assert more > 1
    assert seeds_to_verdict(sample(8, -1.0, 0.02), RULE) == 0
    assert seeds_to_verdict(sample(4, 0.0, 0.02), RULE, cap=5) is None
    near = seeds_to_verdict(sample(4, 0.0, 0.02), RULE)
    assert near is not None
    assert near == n[np.argmax(reach < 0.01)] - 4
    # With five arms p at alpha/5 and the sequence at 1 - alpha/5 settle it at the same time.
    reach = critical_t(n, RULE.g, RULE.alpha / 5) * 0.02 / np.sqrt(n)
    assert seeds_to_verdict(d, RULE, arms=5) == n[np.argmax(reach <= 0.02)] - 4 > more
    assert seeds_to_verdict(sample(4, 0.0, 0.02), RULE, arms=5) == n[np.argmax(reach < 0.01)] - 4
    reaches = [float(critical_t(8, RULE.g, alpha)) / math.sqrt(8) for alpha in (0.05, 0.01)]
    between = sample(8, 0.0, 2 * 0.01 / sum(reaches))  # settled for one arm, not yet for one of five
    assert seeds_to_verdict(between, RULE) == 0
    assert seeds_to_verdict(between, RULE, arms=5) not in (0, None)
    assert [seeds_to_verdict(row, RULE) for row in ([], [0.1], [0.1] * 4)] == [None] * 3
    assert seeds_to_verdict([0.0] * 4, RULE) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"smallest_effect": 0.0}, "smallest effect"),
        ({"smallest_effect": math.nan}, "smallest effect"),
        ({"g": -1.0}, "prior variance"),
        ({"minimum": 1}, "minimum of 1"),
    ],
)
def test_rules_that_cannot_be(change: dict[str, float], message: str) -> None:
    with pytest.raises(GptlabError, match=message):
        Rule(**{"alpha": 0.05, "smallest_effect": 0.01, "g": 2.0, **change})  # type: ignore[arg-type]


def test_a_rule_is_planned_for_its_arms() -> None:
    rule = Rule.planned(seeds=6, smallest_effect=0.1, alpha=0.1, arms=4, lower_is_better=False, minimum=5)
    assert rule == Rule(0.1, 0.1, prior_variance(0.025, 6), lower_is_better=False, minimum=5)


def test_bad_differences_are_refused() -> None:
    with pytest.raises(GptlabError, match="value 2 of arm 'a' is inf"):
        decide({"a": [0.1, math.inf]}, RULE)
    with pytest.raises(GptlabError, match="no arms"):
        decide({}, RULE)
    with pytest.raises(GptlabError, match="1 planned seeds"):
        prior_variance(0.05, 1)
    with pytest.raises(GptlabError, match="0 arms"):
        Rule.planned(seeds=6, smallest_effect=0.1, arms=0)
