"""The range test: its schedule, its reading of made curves, and the command on a real run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, gptlab, make_data, only_run

from gptlab.config import config_from
from gptlab.errors import ConfigError, GptlabError
from gptlab.lab.lr_find import analyse, range_test
from gptlab.lab.lr_range import Exponential


def test_the_schedule_grows_by_the_same_factor() -> None:
    schedule = Exponential(5, low=0.01, high=100.0)
    assert [schedule(step) for step in range(5)] == pytest.approx([0.01, 0.1, 1, 10, 100])
    with pytest.raises(ConfigError, match="no range"):
        Exponential(5, low=1.0, high=1.0)


def test_it_finds_the_steepest_point_and_where_a_made_curve_diverges() -> None:
    multipliers = np.logspace(-3, 2, 400)
    decades = np.log10(multipliers)
    losses = 5 - 2 / (1 + np.exp(-6 * (decades + 1))) + np.exp(8 * (decades - 1))
    noisy = losses + np.random.default_rng(0).normal(0, 0.02, 400)
    found = analyse(multipliers, noisy)
    assert found.steepest == pytest.approx(0.1, rel=0.8)
    assert found.diverged == pytest.approx(10**1.05, rel=0.5)  # where the made curve is at 1.5 times its lowest, 3
    assert found.cautious == pytest.approx(found.diverged / 10)


def test_what_is_not_finite_is_divergence_and_a_flat_curve_suggests_nothing() -> None:
    multipliers = np.logspace(-3, 2, 50)
    losses = np.linspace(5, 4, 50)
    losses[40:] = np.nan
    assert analyse(multipliers, losses).diverged == multipliers[40]
    flat = analyse(multipliers, np.full(50, 5.0))
    assert flat.steepest is None
    assert flat.diverged is None


@pytest.mark.slow
def test_the_command_on_a_real_run(tmp_path: Path) -> None:
    make_data(tmp_path)
    (tmp_path / "base.yaml").write_text(TINY + "data: {path: data}\n")
    done = gptlab("lr-find", "base.yaml", "--steps", "60", "--high", "1e4", cwd=tmp_path)
    steepest = float(next(line for line in done.stdout.splitlines() if "steepest" in line).split()[-2])
    assert 0.1 < steepest < 1e3
    assert "diverged" in done.stdout
    assert (only_run(tmp_path) / "lr-find.png").is_file()
    again = gptlab("lr-find", "base.yaml", "--steps", "60", "--high", "1e4", cwd=tmp_path)
    assert "training" not in again.stderr
    assert again.stdout == done.stdout


def test_ranges_that_show_nothing_are_refused(tmp_path: Path) -> None:
    config = config_from({"data": {"path": str(tmp_path)}, "model": {"dim": 32, "heads": 2, "layers": 1}})
    with pytest.raises(GptlabError, match="no range"):
        range_test(config, low=1, high=0.1, steps=100)
    with pytest.raises(GptlabError, match="--steps 3"):
        range_test(config, low=0.1, high=1, steps=3)
