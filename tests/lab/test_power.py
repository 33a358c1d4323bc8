"""Power: what is promised is what the real rule does, on simulated noise and on that of real runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from gptlab.errors import GptlabError
from gptlab.lab.stats.decision import Rule, Verdict, decide
from gptlab.lab.stats.power import (
    fixed_minimum_detectable_effect,
    fixed_power,
    minimum_detectable_effect,
    power,
)
from gptlab.lab.stats.sequential import sequential_test

PAGE = Path(__file__).resolve().parents[2] / "docs" / "statistics.md"
LOSSES = np.array(json.loads(Path(__file__).with_name("noise.json").read_text(encoding="utf-8"))["losses"])
NOISE = float(LOSSES.std(ddof=1))
"""The standard deviation of a tiny run's validation loss over 24 seeds (make_noise.py), nats a token."""

SAID = (Verdict.BETTER, Verdict.WORSE)
RULE = Rule.planned(seeds=8, smallest_effect=0.5 * NOISE)


def differences(rng: np.random.Generator, experiments: int, pairs: int) -> np.ndarray:
    """Differences of two real runs of one config, with other seeds: no effect, and no pairing."""
    arm = rng.integers(24, size=(experiments, pairs))
    baseline = (arm + rng.integers(1, 24, size=arm.shape)) % 24
    return np.asarray(LOSSES[arm] - LOSSES[baseline])


def first_verdict(d: np.ndarray, rule: Rule) -> tuple[Verdict, int]:
    """Peek after every seed, stop at the first verdict, as `gptlab run` does."""
    for n in range(1, len(d) + 1):
        found = decide({"arm": d[:n]}, rule)["arm"]
        if found.verdict is not Verdict.INCONCLUSIVE:
            return found.verdict, n
    return Verdict.INCONCLUSIVE, len(d)


def test_400_null_experiments_on_the_noise_of_real_runs() -> None:
    verdicts = [first_verdict(d, RULE)[0] for d in differences(np.random.default_rng(0), 400, 12)]
    wrong = sum(verdict in SAID for verdict in verdicts)
    assert wrong <= 20
    # The same peeks with a t test of a fixed number are wrong far more often.
    naive = [
        any(stats.ttest_1samp(d[:n], 0).pvalue <= 0.05 for n in range(3, 13))
        for d in differences(np.random.default_rng(0), 100, 12)
    ]
    assert sum(naive) > 10


def test_a_planted_effect_is_found_as_often_as_promised() -> None:
    effect = 2 * NOISE
    found = [first_verdict(d, RULE) for d in differences(np.random.default_rng(1), 1000, 12) + effect]
    for maximum in (6, 8, 12):
        share = np.mean([verdict is Verdict.WORSE and n <= maximum for verdict, n in found])
        promised = power(effect, math.sqrt(2) * NOISE, RULE, maximum=maximum)
        assert abs(share - promised.probability) <= 0.05
        used = np.mean([min(n, maximum) for _, n in found])
        assert used == pytest.approx(promised.expected_seeds, abs=0.35)


@pytest.mark.parametrize(("effect", "sd", "often"), [(1.1, 1.0, Verdict.BETTER), (0.3, 0.45, Verdict.NO_DIFFERENCE)])
def test_the_simulation_is_the_rule(effect: float, sd: float, often: Verdict) -> None:
    # Every path of the simulation, walked by decide() as an experiment of two arms whose other shows nothing.
    rule = Rule.planned(seeds=6, smallest_effect=0.8, arms=2, lower_is_better=False)
    paths, seeds = [], []
    for d in effect + sd * np.random.default_rng(7).standard_normal((150, 9)):
        for n in range(1, 10):
            found = decide({"arm": d[:n], "other": [0.5, -0.5]}, rule)["arm"].verdict
            if found is not Verdict.INCONCLUSIVE:
                break
        paths.append(found)
        seeds.append(n)
    simulated = power(effect, sd, rule, maximum=9, arms=2, paths=150, seed=7)
    assert simulated.probability == pytest.approx(paths.count(Verdict.BETTER) / 150)
    assert simulated.wrong_side == pytest.approx(paths.count(Verdict.WORSE) / 150)
    assert simulated.no_difference == pytest.approx(paths.count(Verdict.NO_DIFFERENCE) / 150)
    assert simulated.inconclusive == pytest.approx(paths.count(Verdict.INCONCLUSIVE) / 150)
    assert simulated.expected_seeds == pytest.approx(np.mean(seeds))
    assert 0.1 < paths.count(often) / 150 < 0.9


def test_a_shorter_experiment_is_the_beginning_of_a_longer() -> None:
    rule = Rule.planned(seeds=6, smallest_effect=0.8)
    longer = power(1.1, 1.0, rule, maximum=9)
    for maximum in (4, 6, 9):
        shorter = power(1.1, 1.0, rule, maximum=maximum)
        assert shorter.probability == pytest.approx(longer.found_by[maximum - 1], abs=6 * longer.error)


def test_no_effect_is_found_as_rarely_as_promised() -> None:
    found = power(0.0, 1.0, Rule.planned(seeds=6, smallest_effect=0.5), maximum=12)
    assert 0.005 < found.probability <= 0.05
    assert found.wrong_side == 0
    assert power(1.5, 1.0, RULE, maximum=8).wrong_side < 0.002


def test_effects_of_either_sign_are_found_as_often() -> None:
    up, down = (power(e, 1.0, Rule(0.05, 0.5, 2.0), maximum=8).probability for e in (1.5, -1.5))
    assert up == pytest.approx(down, abs=0.02)
    high = power(1.5, 1.0, Rule(0.05, 0.5, 2.0, lower_is_better=False), maximum=8)
    assert high.probability == up


def test_more_of_everything_finds_more() -> None:
    rule = Rule.planned(seeds=6, smallest_effect=0.5)
    shares = [power(effect, 1.0, rule, maximum=8).probability for effect in (0.5, 1.0, 2.0, 4.0)]
    assert shares == sorted(shares)
    assert shares[-1] > 0.99
    assert power(1.5, 1.0, rule, maximum=8, arms=4).probability < power(1.5, 1.0, rule, maximum=8).probability
    assert power(1.5, 1.0, rule, maximum=8).error == pytest.approx(
        math.sqrt(power(1.5, 1.0, rule, maximum=8).probability * power(1.5, 1.0, rule, maximum=8).inconclusive / 2e4),
        rel=0.2,
    )


def test_effects_that_do_not_matter_are_said_not_to() -> None:
    rule = Rule.planned(seeds=8, smallest_effect=1.0)
    assert power(0.0, 0.3, rule, maximum=8).no_difference > 0.95
    assert power(1.0, 0.3, rule, maximum=8).no_difference <= 0.05


@pytest.mark.parametrize("maximum", [5, 8])
def test_the_minimum_detectable_effect_is_detected(maximum: int) -> None:
    rule = Rule.planned(seeds=maximum, smallest_effect=0.002)
    effect = minimum_detectable_effect(0.02, rule, maximum=maximum)
    found = power(effect, 0.02, rule, maximum=maximum, seed=11)
    assert found.probability == pytest.approx(0.8, abs=5 * found.error)
    assert effect > fixed_minimum_detectable_effect(0.02, seeds=maximum)


def test_the_page_says_what_can_be_found() -> None:
    text = PAGE.read_text(encoding="utf-8").split("\n## Power\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 5
    for row in rows:
        n = int(row[0])
        rule = Rule.planned(seeds=n, smallest_effect=1e-6)
        effect = minimum_detectable_effect(1.0, rule, maximum=n)
        used = [power(times * effect, 1.0, rule, maximum=n).expected_seeds for times in (1, 2)]
        expected = [fixed_minimum_detectable_effect(1.0, seeds=n), effect]
        assert [cell.strip() for cell in row[1:]] == [*(f"{x:.2f}" for x in expected), *(f"{x:.1f}" for x in used)]


def test_fixed_power_is_the_textbooks() -> None:
    # Cohen's d_z = 0.5 with 34 pairs at a two-sided 0.05: power 0.808 in the usual tables.
    assert fixed_power(0.5, 1.0, seeds=34) == pytest.approx(0.808, abs=5e-4)
    assert fixed_power(0.0, 1.0, seeds=5) == pytest.approx(0.05)
    d = np.random.default_rng(0).normal(-1.2, 1.0, (20_000, 6))
    found = (stats.ttest_1samp(d, 0, axis=1).pvalue < 0.05).mean()
    assert fixed_power(-1.2, 1.0, seeds=6) == pytest.approx(found, abs=0.012)
    effect = fixed_minimum_detectable_effect(0.3, seeds=4, power=0.9)
    assert fixed_power(effect, 0.3, seeds=4) == pytest.approx(0.9)


def test_the_simulation_uses_all_paths() -> None:
    found = power(1.0, 1.0, RULE, maximum=12)
    total = found.probability + found.wrong_side + found.no_difference + found.inconclusive
    assert total == pytest.approx(1)
    assert found == power(1.0, 1.0, RULE, maximum=12)
    assert found.found_by[-1] == pytest.approx(found.probability)
    assert sequential_test(np.zeros((2, 3)), g=1.0, alpha=0.05).p.shape == (2, 3)


def test_plans_that_cannot_be() -> None:
    rule = Rule.planned(seeds=8, smallest_effect=0.5)
    with pytest.raises(GptlabError, match="noise of paired differences is 0"):
        power(1.0, 0.0, rule, maximum=8)
    with pytest.raises(GptlabError, match="at most 2 seeds"):
        power(1.0, 1.0, rule, maximum=2)
    with pytest.raises(GptlabError, match=r"no effect with probability 0\.8, however large"):
        minimum_detectable_effect(1.0, rule, maximum=3)
    with pytest.raises(GptlabError, match=r"power of 1\.5"):
        minimum_detectable_effect(1.0, rule, maximum=8, power=1.5)
    with pytest.raises(GptlabError, match="1 seeds has no power"):
        fixed_power(1.0, 1.0, seeds=1)
    with pytest.raises(GptlabError, match=r"power of 0\.01"):
        fixed_minimum_detectable_effect(1.0, seeds=4, power=0.01)
