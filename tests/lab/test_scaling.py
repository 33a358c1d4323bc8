"""Scaling laws: known curves are found again, intervals cover, and what the data cannot say is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from gptlab.errors import GptlabError
from gptlab.lab.stats.scaling import (
    CHINCHILLA,
    HOFFMANN,
    ParametricLaw,
    PowerLaw,
    compute_equivalent,
    fit_parametric,
    fit_power_law,
    rank_correlation,
)

BUDGETS = np.repeat(np.geomspace(1e13, 1e16, 5), 3)
LAW = PowerLaw(2.0, 60.0, 0.11)
SIZES, TOKENS = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 3e7, 4), np.geomspace(1e7, 1e9, 4)))


def noisy(loss: np.ndarray, sd: float, seed: int) -> np.ndarray:
    """Losses with log-normal noise."""
    return np.asarray(loss * np.exp(np.random.default_rng(seed).normal(0, sd, loss.shape)))


# ---------------------------------------------------------------- loss against compute


def test_a_power_law_is_found_again() -> None:
    found = fit_power_law(BUDGETS, LAW.loss(BUDGETS), resamples=2).law
    assert (found.E, found.A, found.b) == pytest.approx((LAW.E, LAW.A, LAW.b), rel=1e-4)
    steep = PowerLaw(0.0, 40.0, 0.06)
    two = np.array([1e13, 1e13, 1e14, 1e14])
    found = fit_power_law(two, steep.loss(two), resamples=2).law
    assert (found.E, found.A, found.b) == pytest.approx((0.0, 40.0, 0.06), rel=1e-6)
    assert found.compute(found.loss(3e13)) == pytest.approx(3e13)
    assert LAW.compute([2.0, 1.0]) == pytest.approx([math.inf, math.inf])


def test_without_noise_two_budgets_are_a_line_in_logs() -> None:
    # L halves while C grows 16-fold: b = log 2 / log 16 = 1/4. 4 = A * 16^(-1/4) = A / 2.
    found = fit_power_law([16.0, 16.0, 256.0, 256.0], [4.0, 4.0, 2.0, 2.0], resamples=1).law
    assert (found.A, found.b) == pytest.approx((8.0, 0.25))


def test_a_run_that_went_wrong_bends_the_curve_little() -> None:
    loss = noisy(LAW.loss(BUDGETS), 0.001, 0)
    spoilt = loss.copy()
    spoilt[-1] *= 1.3
    robust = fit_power_law(BUDGETS, spoilt, delta=1e-3, resamples=1).law.loss(1e16)
    square = fit_power_law(BUDGETS, spoilt, delta=1.0, resamples=1).law.loss(1e16)
    assert abs(robust / LAW.loss(1e16) - 1) < 0.004
    assert abs(square / LAW.loss(1e16) - 1) > 0.02


def test_the_interval_covers_a_new_run() -> None:
    law, budgets, inside = PowerLaw(0.0, 40.0, 0.06), np.repeat([1e13, 1e14, 1e15], 3), 0
    rng = np.random.default_rng(1)
    for seed in range(30):
        fit = fit_power_law(budgets, noisy(law.loss(budgets), 0.004, seed), resamples=30)
        found = fit.predict(4e15)
        assert found.low < found.value < found.high
        inside += found.low <= law.loss(4e15) * math.exp(rng.normal(0, 0.004)) <= found.high
    assert inside >= 26


def test_the_bootstrap_says_what_it_resampled() -> None:
    loss = noisy(LAW.loss(BUDGETS), 0.002, 3)
    assert fit_power_law(BUDGETS, loss, resamples=5).resampled == "runs"
    one_each = fit_power_law(BUDGETS[::3], loss[::3], resamples=5)
    assert one_each.resampled == "residuals"
    assert one_each.budgets == pytest.approx((1e13, 1e16))
    again = fit_power_law(BUDGETS, loss, resamples=5)
    assert again.draws == fit_power_law(BUDGETS, loss, resamples=5).draws


def test_few_runs_of_a_budget_are_not_taken_for_less_noise() -> None:
    # Two runs e^a and e^-a times a curve: their variance is 2 a^2, that of their mean a^2, and so must the draws' be.
    a, budgets = 0.01, np.array([1e13, 1e13, 1e15, 1e15])
    loss = PowerLaw(0.0, 40.0, 0.06).loss(budgets) * np.exp([a, -a, a, -a])
    fit = fit_power_law(budgets, loss, resamples=600)
    spread = np.std([math.log(law.loss(1e13)) for law in fit.draws])
    assert spread == pytest.approx(a, rel=0.1)


def test_losses_as_compute() -> None:
    fit = fit_power_law(BUDGETS, LAW.loss(BUDGETS), resamples=20)
    base = LAW.loss(1e15)
    better = compute_equivalent(fit, base, LAW.loss(1.25e15))
    assert (better.saved, better.multiplier) == pytest.approx((0.2, 1.25), rel=1e-4)
    assert better.low == pytest.approx(better.high, rel=1e-3)  # a curve without noise, and losses taken as exact
    worse = compute_equivalent(fit, base, LAW.loss(0.8e15))
    assert (worse.saved, worse.multiplier) == pytest.approx((-0.25, 0.8), rel=1e-4)
    assert str(worse).endswith("% more compute")


def test_the_interval_of_compute_covers() -> None:
    law, budgets, inside = PowerLaw(0.0, 40.0, 0.06), np.repeat([1e13, 1e14, 1e15], 3), 0
    rng, widths = np.random.default_rng(2), []
    for seed in range(30):
        fit = fit_power_law(budgets, noisy(law.loss(budgets), 0.002, seed), resamples=30)
        shared, own = rng.normal(0, 0.002, 5), rng.normal(0, 0.002, 5)
        found = compute_equivalent(fit, law.loss(1e14) * np.exp(shared), law.loss(1.12e14) * np.exp(shared + own))
        inside += found.low <= 1 - 1 / 1.12 <= found.high
        widths.append(found.half_width)
    assert inside >= 26
    assert np.median(widths) < 0.1
    assert str(found) == f"{100 * found.saved:.0f}% ± {100 * found.half_width:.0f}% less compute"


def test_compute_far_outside_is_refused() -> None:
    fit = fit_power_law(BUDGETS, LAW.loss(BUDGETS), resamples=5)
    far = LAW.loss(5e16)
    with pytest.raises(GptlabError, match=r"at 5e\+16 FLOPs, 5 times outside of the fitted 1e\+13 to 1e\+16.*reach="):
        compute_equivalent(fit, LAW.loss(1e16), far)
    assert compute_equivalent(fit, LAW.loss(1e16), far, reach=5.1).multiplier == pytest.approx(5, rel=1e-3)
    with pytest.raises(GptlabError, match=r"the baseline, .* 3 times outside"):
        compute_equivalent(fit, LAW.loss(1e13 / 3), LAW.loss(1e13))
    with pytest.raises(GptlabError, match="below the floor 2 of"):
        compute_equivalent(fit, LAW.loss(1e16), 1.9, reach=math.inf)
    with pytest.raises(GptlabError, match="3 losses of the arm do not pair with 2"):
        compute_equivalent(fit, [3.0, 3.0], [3.0, 3.0, 3.0])


@pytest.mark.parametrize(
    ("compute", "loss", "options", "message"),
    [
        ([1e13, 1e13], [3.0, 3.1], {}, "1 distinct budgets do not show a power law; train 2"),
        ([1e13, 1e14, 1e15], [4.0, 3.5, 3.2], {"floor": True}, "with a floor; train 4"),
        ([1e13, 1e14], [4.0, 3.5], {}, "2 runs for 2 numbers leave nothing"),
        ([1e13, 1e14, 1e15], [3.0, 3.2, 3.4], {}, "does not fall with compute"),
        ([1e13, 1e14, -1], [4.0, 3.5, 3.2], {}, "compute must be positive"),
        ([1e13, 1e14, 1e15], [4.0, math.nan, 3.2], {}, "loss must be positive"),
        ([1e13, 1e14], [4.0, 3.5, 3.2], {}, "2 budgets do not go with 3 losses"),
    ],
)
def test_curves_that_cannot_be_fitted(
    compute: list[float], loss: list[float], options: dict[str, bool], message: str
) -> None:
    with pytest.raises(GptlabError, match=message):
        fit_power_law(compute, loss, **options)


# ---------------------------------------------------------------- loss against parameters and tokens


def test_chinchillas_constants_are_found_again() -> None:
    found = fit_parametric(SIZES, TOKENS, CHINCHILLA.loss(SIZES, TOKENS), resamples=1).law
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(CHINCHILLA, name), rel=1e-3)


def test_the_next_size_is_predicted_within_its_interval() -> None:
    inside = 0
    for seed in range(10):
        fit = fit_parametric(SIZES, TOKENS, noisy(CHINCHILLA.loss(SIZES, TOKENS), 0.003, seed), resamples=30)
        found = fit.predict(1e8, 2e9)
        inside += found.low <= CHINCHILLA.loss(1e8, 2e9) <= found.high
    assert inside >= 8
    alpha, (n, d) = fit.interval("alpha"), fit.optimal(1e17)
    assert alpha.low < CHINCHILLA.alpha < alpha.high
    assert n.low < n.value < n.high
    assert 6 * n.value * d.value == pytest.approx(1e17)
    assert (fit.parameters, fit.resampled) == (pytest.approx((1e6, 3e7)), "residuals")


@pytest.mark.parametrize("law", [CHINCHILLA, HOFFMANN], ids=["Besiroglu", "Hoffmann"])
def test_the_best_size_is_the_minimum_at_a_budget(law: ParametricLaw) -> None:
    flops = 5.76e23
    n, d = law.optimal(flops)
    assert 6 * n * d == pytest.approx(flops)
    best = optimize.minimize_scalar(
        lambda log_n: float(law.loss(math.exp(log_n), flops / 6 / math.exp(log_n))), bounds=(15, 35), method="bounded"
    )
    assert math.log(n) == pytest.approx(best.x, abs=1e-3)


def test_published_constants_balance_as_the_page_says() -> None:
    ratios = [d / n for n, d in (law.optimal(5.76e23) for law in (CHINCHILLA, HOFFMANN))]
    assert ratios == pytest.approx([18.4, 92.6], abs=0.1)
    # Chinchilla itself, 70B parameters on 1.4T tokens: 406.4 / 70e9^0.34 = 0.0834, 410.7 / 1.4e12^0.28 = 0.1632.
    assert HOFFMANN.loss(70e9, 1.4e12) == pytest.approx(1.69 + 0.0834 + 0.1632, abs=2e-4)


def test_surfaces_that_cannot_be_fitted() -> None:
    with pytest.raises(GptlabError, match="2 sizes and 4 numbers of tokens in 8 pairs"):
        fit_parametric(np.repeat([1e6, 2e6], 4), np.tile(np.geomspace(1e7, 1e8, 4), 2), np.full(8, 3.0))
    with pytest.raises(GptlabError, match="give one of each a run"):
        fit_parametric(SIZES, TOKENS, [3.0])
    with pytest.raises(GptlabError, match="does not fall with both"):
        fit_parametric(SIZES, TOKENS, 2 + 100 * SIZES**-0.3)
    with pytest.raises(GptlabError, match="budget of 0"):
        CHINCHILLA.optimal(0)


# ---------------------------------------------------------------- order between sizes


@pytest.mark.parametrize("arms", [3, 4, 5])
def test_the_order_of_arms_has_exact_p_values(arms: int) -> None:
    rng = np.random.default_rng(arms)
    small = rng.normal(size=arms)
    large = small + rng.normal(0, 0.7, arms)
    found = rank_correlation(small, large)
    for name, function in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        observed = function(small, large).statistic
        every = np.array([function(small, order).statistic for order in itertools.permutations(large)])
        assert getattr(found, name) == pytest.approx(observed)
        # SciPy's two-sided p: twice the smaller tail.
        tails = [np.mean(every >= observed - 1e-9), np.mean(every <= observed + 1e-9)]
        assert getattr(found, f"{name}_p") == pytest.approx(min(1, 2 * min(tails)))


def test_three_arms_in_one_order_prove_little() -> None:
    found = rank_correlation([3.1, 3.2, 3.3], [2.9, 2.95, 3.2])
    assert (found.spearman, found.kendall) == pytest.approx((1, 1))
    assert (found.spearman_p, found.kendall_p) == pytest.approx((1 / 3, 1 / 3))
    assert rank_correlation([1.0, 2.0], [2.0, 1.0]).kendall_p == 1


def test_many_arms_and_ties() -> None:
    rng = np.random.default_rng(0)
    small = rng.normal(size=12).round(1)
    large = (small + rng.normal(0, 0.3, 12)).round(1)
    found = rank_correlation(small, large)
    assert found.kendall == pytest.approx(stats.kendalltau(small, large).statistic)
    assert found.kendall_p < 0.01
    assert found == rank_correlation(small, large)
    with pytest.raises(GptlabError, match="all arms are equal"):
        rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    with pytest.raises(GptlabError, match="two arms or more"):
        rank_correlation([1.0, math.nan], [1.0, 2.0])
