"""Loss against compute: known curves are found again, intervals cover, and what the data cannot say is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lab.samples import noisy

from gptlab.errors import GptlabError
from gptlab.lab.stats.power_law import PowerLaw, compute_equivalent, fit_power_law

BUDGETS = np.repeat(np.geomspace(1e13, 1e16, 5), 3)
LAW = PowerLaw(2.0, 60.0, 0.11)


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
