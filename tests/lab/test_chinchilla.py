"""Loss against parameters and tokens: published constants, the best size at a budget, the next size."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from helpers import chinchilla_table
from lab.samples import noisy
from scipy import optimize

from gptlab.errors import DataError, GptlabError
from gptlab.lab.stats.chinchilla import CHINCHILLA, HOFFMANN, ParametricLaw, fit_parametric, published_runs

SIZES, TOKENS = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 3e7, 4), np.geomspace(1e7, 1e9, 4)))


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


def test_the_published_points_are_read_in_the_form_in_which_they_are_published(tmp_path: Path) -> None:
    """A table of the form of Besiroglu et al.'s, of points that lie about their own law: the fit finds the law."""
    table = chinchilla_table(tmp_path / "points.csv")
    n, d, loss = published_runs(table)
    assert len(n) == len(d) == len(loss) == 245
    assert (np.diff(loss) >= 0).all()
    fit = fit_parametric(n[:-5], d[:-5], loss[:-5], resamples=20)
    for name in ("E", "alpha", "beta"):
        assert getattr(fit.law, name) == pytest.approx(getattr(CHINCHILLA, name), rel=0.02)
    for name in ("A", "B"):  # which move together with the slopes
        assert getattr(fit.law, name) == pytest.approx(getattr(CHINCHILLA, name), rel=0.2)
    assert "through 240 runs" in repr(fit)


def test_another_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("n,loss\n1,2\n")
    with pytest.raises(DataError, match=r"other\.csv is not the table of Besiroglu et al\.: it lacks 'Model Size'"):
        published_runs(tmp_path / "other.csv")
    with pytest.raises(DataError, match=r"none\.csv cannot be read"):
        published_runs(tmp_path / "none.csv")
