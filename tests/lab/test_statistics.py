"""The lab's statistics: equal to SciPy's, to examples by hand, to numerical integration, and true in simulation."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from gptlab.errors import GptlabError
from gptlab.lab.stats.statistics import (
    Rule,
    Verdict,
    critical_t,
    decide,
    effect_size,
    follow,
    holm,
    log_e_value,
    paired_summary,
    prior_variance,
    seeds_to_settle,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "statistics.md"
RULE = Rule(alpha=0.05, smallest_effect=0.01, g=2.0)


def sample(n: int, mean: float, sd: float, seed: int = 0) -> np.ndarray:
    """n numbers of exactly this mean and standard deviation."""
    z = np.random.default_rng(seed).standard_normal(n)
    return np.asarray(mean + sd * (z - z.mean()) / z.std(ddof=1))


def table(heading: str) -> list[list[str]]:
    """The rows of the first table after a heading of the page, without its head."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    lines = re.findall(r"(?:^\|.*\n)+", text, re.M)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# ---------------------------------------------------------------- a fixed number of pairs


def test_an_example_by_hand() -> None:
    # Differences -1, -2, -3, -2: sum -8, mean -2, deviations 1, 0, -1, 0, so squares 2, variance 2/3.
    d = [-1.0, -2.0, -3.0, -2.0]
    found = paired_summary(d)
    assert found.mean == -2
    assert found.sd == pytest.approx(math.sqrt(2 / 3))
    assert found.standard_error == pytest.approx(math.sqrt(2 / 3) / 2)  # sqrt(1/6)
    assert found.t == pytest.approx(-math.sqrt(24))  # -2 / sqrt(1/6)
    # All four have one sign: of 16 flips two are as far from 0.
    assert found.permutation_p == pytest.approx(2 / 16)
    # t at 0.975 with three degrees of freedom is 3.182446 in every table.
    assert found.t_interval == pytest.approx((-2 - 3.182446 / math.sqrt(6), -2 + 3.182446 / math.sqrt(6)), abs=1e-6)
    # E with g = 1. n = 2: r = 3, t^2/nu = 9, E = (10 / 4)^1 / sqrt(3) = 1.4434.
    # n = 3: r = 4, t^2/nu = 12/2 = 6, E = (7 / 2.5)^1.5 / 2 = 2.3426.
    # n = 4: r = 5, t^2/nu = 24/3 = 8, E = (9 / 2.6)^2 / sqrt(5) = 5.3586.
    course = follow(d, g=1.0, alpha=0.05)
    assert 1 / course.p == pytest.approx([1, 1.4434, 2.3426, 5.3586], abs=1e-4)
    # t* at g = 4, alpha = 0.05, n = 4: r = 17, k = (17 * 400)^(1/4) = 9.0808, t*^2 = 3 * 8.0808 * 17 / 7.9192 = 52.041.
    assert critical_t(4, 4.0, 0.05) == pytest.approx(math.sqrt(52.041), abs=1e-4)
    low, high = (float(end[-1]) for end in (follow(d, g=4.0, alpha=0.05).low, follow(d, g=4.0, alpha=0.05).high))
    assert (low, high) == pytest.approx((-2 - 7.2140 / math.sqrt(6), -2 + 7.2140 / math.sqrt(6)), abs=1e-4)


def test_the_summary_is_scipys() -> None:
    rng = np.random.default_rng(3)
    arm, baseline = rng.normal(3.2, 0.05, 7), rng.normal(3.25, 0.05, 7)
    found = paired_summary(arm - baseline, confidence=0.9)
    expected = stats.ttest_rel(arm, baseline)
    assert (found.t, found.t_p) == pytest.approx((expected.statistic, expected.pvalue))
    assert found.t_interval == pytest.approx(tuple(expected.confidence_interval(0.9)))
    bca = stats.bootstrap(
        (arm - baseline,), np.mean, confidence_level=0.9, method="BCa", n_resamples=9999, rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.bootstrap == pytest.approx((bca.low, bca.high))


@pytest.mark.parametrize("n", [2, 3, 6, 10])
def test_the_permutation_p_counts_every_flip(n: int) -> None:
    d = np.random.default_rng(n).normal(0.8, 1, n)
    means = np.array([np.mean(d * signs) for signs in itertools.product([1, -1], repeat=n)])
    expected = np.mean(np.abs(means) >= abs(d.mean()) - 1e-12)
    assert paired_summary(d).permutation_p == pytest.approx(expected)


@pytest.mark.filterwarnings("error")
def test_a_summary_says_what_it_cannot_know() -> None:
    one, two, equal = paired_summary([0.3]), paired_summary([0.3, 0.4]), paired_summary([0.1 + 0.2, 0.3, 0.3])
    assert (one.mean, one.sd, one.t_interval) == (0.3, None, None)
    assert two.bootstrap is None
    assert two.t_interval is not None
    assert (equal.sd, equal.t, equal.t_p, equal.bootstrap, equal.permutation_p) == (0.0, None, None, None, None)
    with pytest.raises(GptlabError, match="run a seed first"):
        paired_summary([])
    with pytest.raises(GptlabError, match="value 2 is nan"):
        paired_summary([0.1, math.nan])


def test_effect_sizes() -> None:
    # Baseline 2, 3, 4: mean 3, sd 1. Arm 1, 3, 2: mean 2, variance 1. Differences -1, 0, -2: mean -1, variance 1.
    found = effect_size([1.0, 3.0, 2.0], [2.0, 3.0, 4.0])
    assert (found.raw, found.noise_units, found.standardized) == pytest.approx((-1, -1, -1))
    assert found.percent == pytest.approx(-100 / 3)
    assert found.correlation == pytest.approx(0.5)  # covariance 1/2
    assert found.pairing_gain == pytest.approx(2.0)  # (1 + 1) / 1 = 1 / (1 - 0.5)
    same = effect_size([1.0, 2.0], [1.0, 2.0])
    assert (same.raw, same.standardized, same.pairing_gain) == (0, None, None)
    assert effect_size([1.0], [0.0]).percent is None
    with pytest.raises(GptlabError, match="2 values of the arm do not pair with 1"):
        effect_size([1.0, 2.0], [1.0])


# ---------------------------------------------------------------- evidence at any time


@pytest.mark.parametrize(("t", "n", "g"), list(itertools.product([0, 0.7, -2.5, 8], [2, 3, 7, 12], [0.3, 2.0, 30.0])))
def test_e_is_the_likelihood_ratio_of_t(t: float, n: int, g: float) -> None:
    def weighed(delta: float) -> float:
        return float(stats.nct.pdf(t, n - 1, math.sqrt(n) * delta) * stats.norm.pdf(delta, scale=math.sqrt(g)))

    edge = 8 * math.sqrt(g)
    alternative = integrate.quad(weighed, -edge, edge, points=[0, t / math.sqrt(n)], limit=400)[0]
    assert math.exp(log_e_value(t, n, g)) == pytest.approx(alternative / stats.t.pdf(t, n - 1), rel=1e-5)


def test_e_is_a_martingale_under_the_null_at_every_scale() -> None:
    rng = np.random.default_rng(1)
    paths = 200_000
    d = rng.standard_normal((paths, 6)) * rng.lognormal(0, 3, (paths, 1))
    n = np.arange(2, 7)
    t = np.stack([stats.ttest_1samp(d[:, :k], 0, axis=1).statistic for k in n], axis=1)
    e = np.exp(log_e_value(t, n, 0.5))
    assert np.abs(e.mean(0) - 1).max() < 4 * (e.std(0) / math.sqrt(paths)).max()
    # Stopped when it is large, small, or at the end: a martingale still has mean 1, whatever the rule.
    stop = np.where((e > 1.3) | (e < 0.6), np.arange(5), 4).min(axis=1)
    stopped = e[np.arange(paths), stop]
    assert len(np.unique(stop)) == 5
    assert abs(stopped.mean() - 1) < 4 * stopped.std() / math.sqrt(paths)


def test_p_is_one_over_the_largest_e() -> None:
    d = np.random.default_rng(5).normal(0.5, 1, 12)
    log_e = [0.0]
    for n in range(2, 13):
        log_e.append(float(log_e_value(stats.ttest_1samp(d[:n], 0).statistic, n, 2.0)))
    assert follow(d, g=2.0, alpha=0.05).p == pytest.approx(np.exp(-np.maximum.accumulate(log_e)))


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.001])
@pytest.mark.parametrize("g", [0.5, 3.0, 40.0])
def test_the_sequence_inverts_the_test(alpha: float, g: float) -> None:
    n = np.arange(2, 40)
    bound = critical_t(n, g, alpha)
    finite = np.isfinite(bound)
    assert finite.any()
    assert log_e_value(bound[finite], n[finite], g) == pytest.approx(math.log(1 / alpha))
    assert (log_e_value(1e9, n[~finite], g) < math.log(1 / alpha)).all()
    assert critical_t(1, g, alpha) == math.inf


@pytest.mark.parametrize("seeds", [2, 3, 5, 8, 12])
def test_the_prior_makes_the_sequence_narrowest_where_planned(seeds: int) -> None:
    best = prior_variance(0.05, seeds)
    others = best * np.geomspace(0.1, 10, 2001)
    assert critical_t(seeds, best, 0.05) <= min(float(critical_t(seeds, g, 0.05)) for g in others) + 1e-9


def ever_missed(d: np.ndarray, mean: float) -> float:
    course = follow(d, g=prior_variance(0.05, 8), alpha=0.05)
    return float(((course.low > mean) | (course.high < mean)).any(axis=1).mean())


def test_the_sequence_covers_the_mean_at_all_times_at_once() -> None:
    paths, pairs = 40_000, 24
    missed = ever_missed(np.random.default_rng(2).normal(0.7, 3.0, (paths, pairs)), 0.7)
    assert missed <= 0.05
    assert missed > 0.01  # a bound that never misses would be too wide to be this one


def test_the_page_says_what_peeking_does_to_a_t_test() -> None:
    d, n = np.random.default_rng(0).standard_normal((20_000, 12)), np.arange(3, 13)
    t = np.stack([stats.ttest_1samp(d[:, :k], 0, axis=1).statistic for k in n], axis=1)
    wrong = (np.abs(t) > stats.t.isf(0.025, n - 1)).any(axis=1).mean()
    assert f"in {100 * wrong:.0f}% of all experiments" in " ".join(PAGE.read_text(encoding="utf-8").split())


NOISES = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "Student's t, 3 degrees of freedom": lambda rng, size: rng.standard_t(3, size),
    "uniform": lambda rng, size: rng.uniform(-1, 1, size),
    "exponential": lambda rng, size: rng.exponential(1, size) - 1,
    "lognormal": lambda rng, size: rng.lognormal(0, 1, size) - math.exp(0.5),
    "two values, ±1": lambda rng, size: rng.choice([-1.0, 1.0], size),
}


@pytest.mark.parametrize("row", range(len(NOISES)))
def test_the_page_says_what_other_noise_does(row: int) -> None:
    name, documented = table("What it assumes")[row]
    missed = ever_missed(NOISES[name](np.random.default_rng(4), (40_000, 12)), 0.0)
    assert f"{100 * missed:.1f}%" == documented


def test_the_page_says_the_price_of_peeking() -> None:
    for cells in table("The price of peeking"):
        n = int(cells[0])
        g = prior_variance(0.05, n)
        values = [stats.t.isf(0.025, n - 1), critical_t(n, g, 0.05), critical_t(n, prior_variance(0.05, 6), 0.05)]
        shown = [f"{value:.2f}" if math.isfinite(value) else "∞" for value in values]
        assert cells[1:] == [shown[0], f"{g:.2f}", shown[1], shown[2]]


numbers = st.lists(st.integers(-5000, 5000).map(lambda thousandths: thousandths / 1000), min_size=1, max_size=9)


@settings(deadline=None, max_examples=150)
@given(numbers, st.floats(0.01, 100), st.floats(-50, 50))
def test_units_and_sign_do_not_matter(values: list[float], scale: float, shift: float) -> None:
    d = np.array(values)
    course, scaled, flipped = (follow(x, g=2.0, alpha=0.05) for x in (d, d * scale, -d))
    assert scaled.p == pytest.approx(course.p, rel=1e-6)
    assert flipped.p == pytest.approx(course.p)
    assert scaled.low == pytest.approx(scale * course.low, rel=1e-6, abs=1e-9)
    assert flipped.low == pytest.approx(-course.high)
    assert (np.diff(course.p) <= 0).all()
    moved = follow(d + shift, g=2.0, alpha=0.05)
    assert moved.low == pytest.approx(course.low + shift, rel=1e-6, abs=1e-6)


def test_experiments_side_by_side_are_each_on_its_own() -> None:
    d = np.random.default_rng(0).normal(0.3, 1, (5, 4, 7))
    together, alone = follow(d, g=2.0, alpha=0.05), follow(d[3, 2], g=2.0, alpha=0.05)
    for name in ("mean", "sd", "p", "side", "low", "high"):
        assert getattr(together, name)[3, 2] == pytest.approx(getattr(alone, name))


# ---------------------------------------------------------------- verdicts


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
    course = follow([0.0, 0.0, 0.0, 0.2], g=3.0, alpha=0.05)
    assert (course.low[2], course.high[2]) == (-math.inf, math.inf)
    assert not course.contradicted.any()


def test_a_contradiction_is_said() -> None:
    d = np.concatenate([sample(6, 1.0, 0.01), sample(40, 0.0, 0.01)])
    found = decide({"arm": d}, RULE)["arm"]
    assert found.contradicted
    assert found.interval.low > found.interval.high
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "excludes each other" in found.sentence
    assert seeds_to_settle(d, RULE) is None


def test_evidence_on_both_sides_is_no_verdict() -> None:
    # Strong evidence below 0, then a mean above it: p stays small, the sides do not agree.
    d = np.concatenate([sample(6, -1.0, 0.1), sample(2, 5.0, 3.0)])
    course = follow(d, g=2.0, alpha=0.05).last()
    assert course.p < 0.05
    assert (course.side, np.sign(course.mean)) == (-1, 1)
    assert decide({"arm": d}, RULE)["arm"].verdict is Verdict.INCONCLUSIVE


def test_holm_lets_the_second_arm_in() -> None:
    strong = sample(8, -1.0, 0.1)
    level = next(m for m in np.linspace(0.2, 1, 400) if follow(sample(8, -m, 0.5), g=2.0, alpha=0.05).p[-1] < 0.04)
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


def test_seeds_to_settle_looks_ahead() -> None:
    d = sample(4, -0.02, 0.02, seed=2)
    more = seeds_to_settle(d, RULE)
    n = np.arange(5, 70)
    reach = critical_t(n, RULE.g, RULE.alpha) * 0.02 / np.sqrt(n)
    assert more == n[np.argmax(reach <= 0.02)] - 4
    assert more > 1
    assert seeds_to_settle(sample(8, -1.0, 0.02), RULE) == 0
    assert seeds_to_settle(sample(4, 0.0, 0.02), RULE, cap=5) is None
    near = seeds_to_settle(sample(4, 0.0, 0.02), RULE)
    assert near is not None
    assert near == n[np.argmax(reach < 0.01)] - 4
    # With five arms p at alpha/5 and the sequence at 1 - alpha/5 settle it at the same time.
    reach = critical_t(n, RULE.g, RULE.alpha / 5) * 0.02 / np.sqrt(n)
    assert seeds_to_settle(d, RULE, arms=5) == n[np.argmax(reach <= 0.02)] - 4 > more
    assert seeds_to_settle(sample(4, 0.0, 0.02), RULE, arms=5) == n[np.argmax(reach < 0.01)] - 4
    reaches = [float(critical_t(8, RULE.g, alpha)) / math.sqrt(8) for alpha in (0.05, 0.01)]
    between = sample(8, 0.0, 2 * 0.01 / sum(reaches))  # settled for one arm, not yet for one of five
    assert seeds_to_settle(between, RULE) == 0
    assert seeds_to_settle(between, RULE, arms=5) not in (0, None)
    assert [seeds_to_settle(row, RULE) for row in ([], [0.1], [0.1] * 4)] == [None] * 3
    assert seeds_to_settle([0.0] * 4, RULE) == 0


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
