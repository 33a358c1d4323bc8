"""The range test: its schedule, its reading of made curves, and the command on a real run."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, gptlab, make_data, only_run, rows
from numpy.typing import NDArray

from gptlab.cli.options import check_picture
from gptlab.config import config_from
from gptlab.errors import ConfigError, GptlabError
from gptlab.lab.runs.execution import Device
from gptlab.lab.runs.store import RunSpec, Store
from gptlab.lab.studies.lr_find import analyse, draw, range_test, run_range_test
from gptlab.lab.studies.lr_range import Exponential
from gptlab.record.runfolder import DIVERGED, Failure, write_failure

Array = NDArray[np.float64]


def test_the_schedule_grows_by_the_same_factor() -> None:
    schedule = Exponential(5, low=0.01, high=100.0)
    assert [schedule(step) for step in range(5)] == pytest.approx([0.01, 0.1, 1, 10, 100])
    with pytest.raises(ConfigError, match="no range"):
        Exponential(5, low=1.0, high=1.0)


def made(shape: str, steps: int) -> tuple[Array, Array]:
    """A noiseless range test from a thousandth to a hundred times the rate."""
    multipliers = np.logspace(-3, 2, steps)
    decades = np.log10(multipliers)

    def falling(high: float, low: float, middle: float, slope: float) -> Array:
        return low + (high - low) / (1 + np.exp(slope * (decades - middle)))

    curves = {
        "plain": falling(5, 3, -1, 6) + np.exp(8 * (decades - 1)),
        "sharp": falling(5, 3, -1, 6) + np.exp(25 * (decades - 1)),
        "gentle": falling(5, 3, -1, 6) + np.exp(4 * (decades - 0.7)),
        "deep": falling(10, 2, -1.5, 4) + np.exp(6 * (decades - 0.3)),
        "jump": falling(5, 3, -1, 6) + np.where(decades > 0.8, 9, 0),
        "plateau": falling(8, 4, -1, 5) + 5 / (1 + np.exp(-12 * (decades - 0.9))),
        "soon": falling(5, 3, -1, 6) + np.exp(20 * (decades + 0.5)),
    }
    return multipliers, curves[shape]


SHAPES = ("plain", "sharp", "gentle", "deep", "jump", "plateau", "soon")


@functools.cache
def truth(shape: str) -> tuple[float, float]:
    """Where a curve diverges, and where it falls fastest before that, on a fine grid without noise."""
    multipliers, losses = made(shape, 100_001)
    end = np.flatnonzero(losses > 1.5 * np.minimum.accumulate(losses))[0]
    return float(multipliers[end]), float(multipliers[np.argmin(np.gradient(losses[:end]))])


def by_exponential_mean(multipliers: Array, losses: Array) -> float:
    """Where a range test saw divergence before it looked to both sides: what is to be better than."""
    decay, mean, smoothed = 1 - 20 / len(losses), 0.0, []
    for step, loss in enumerate(losses):
        mean = decay * mean + (1 - decay) * loss
        smoothed.append(mean / (1 - decay ** (step + 1)))
    return float(multipliers[np.flatnonzero(smoothed > 1.5 * np.minimum.accumulate(smoothed))[0]])


@pytest.mark.parametrize(("noise", "factor"), [(0.0, 1.06), (0.02, 1.08), (0.1, 1.12), (0.3, 1.25)])
def test_divergence_is_found_within_a_factor_of_where_a_made_curve_has_it(noise: float, factor: float) -> None:
    """An exponential mean, which lags, is 1.4 times too late in the median."""
    new, old = [], []
    for shape in SHAPES:
        diverged, _ = truth(shape)
        multipliers, losses = made(shape, 200)
        for seed in range(6):
            noisy = losses + np.random.default_rng(seed).normal(0, noise, 200)
            found = analyse(multipliers, noisy)
            assert found.diverged is not None
            assert found.cautious == pytest.approx(found.diverged / 10)
            new.append(found.diverged / diverged)
            old.append(by_exponential_mean(multipliers, noisy) / diverged)
    assert max(np.abs(np.log(new))) < np.log(factor)
    assert np.median(np.abs(np.log(old))) > 5 * np.median(np.abs(np.log(new)))


@pytest.mark.parametrize(("noise", "factor"), [(0.0, 1.15), (0.1, 1.3), (0.3, 1.4)])
def test_the_steepest_point_is_found_within_a_factor(noise: float, factor: float) -> None:
    ratios = []
    for shape in SHAPES:
        multipliers, losses = made(shape, 200)
        for seed in range(6):
            found = analyse(multipliers, losses + np.random.default_rng(seed).normal(0, noise, 200))
            assert found.steepest is not None
            ratios.append(found.steepest / truth(shape)[1])
    assert max(np.abs(np.log(ratios))) < np.log(factor)


def test_one_bad_batch_is_no_divergence_and_does_not_end_a_run() -> None:
    multipliers, losses = made("plain", 200)
    losses[100] = 50
    for seen in range(101, 108):  # while it is trained: at first the bad batch is the last thing known
        watched = analyse(multipliers[:seen], losses[:seen], steps=200).diverged
        assert watched is None or np.sum(multipliers[:seen] > watched) < 5
    assert analyse(multipliers, losses).diverged == analyse(*made("plain", 200)).diverged


def test_what_is_not_finite_is_divergence_and_a_flat_curve_suggests_nothing() -> None:
    multipliers = np.logspace(-3, 2, 50)
    losses = np.linspace(5, 4, 50)
    for gone in (np.nan, np.inf):
        losses[40:] = gone
        assert analyse(multipliers, losses).diverged == multipliers[40]
        assert analyse(multipliers[:41], losses[:41], steps=50).diverged == multipliers[40]
        assert draw(analyse(multipliers, losses), "gone").startswith(b"\x89PNG")
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
    # By hand: where the loss of a single batch first stays above one and a half times the lowest.
    trained = [row for row in rows(only_run(tmp_path)) if "lr_multiplier" in row]
    losses = np.array([row["train/loss"] for row in trained])
    first = np.flatnonzero(losses <= 1.5 * losses.min())[-1] + 1
    diverged = float(next(line for line in done.stdout.splitlines() if "diverged" in line).split()[-2])
    assert diverged == pytest.approx(trained[first]["lr_multiplier"], rel=0.6)  # two steps of 60 over 7 decades
    assert (only_run(tmp_path) / "lr-find.png").is_file()
    assert "spike: null" in (only_run(tmp_path) / "config.yaml").read_text()  # it would end the test before its end
    again = gptlab("lr-find", "base.yaml", "--steps", "60", "--high", "1e4", cwd=tmp_path)
    assert "training" not in again.stderr
    assert again.stdout == done.stdout


def test_ranges_that_show_nothing_are_refused(tmp_path: Path) -> None:
    config = config_from({"data": {"path": str(tmp_path)}, "model": {"dim": 32, "heads": 2, "layers": 1}})
    with pytest.raises(GptlabError, match="no range"):
        range_test(config, low=1, high=0.1, steps=100)
    with pytest.raises(GptlabError, match="steps=3"):
        range_test(config, low=0.1, high=1, steps=3)
    with pytest.raises(GptlabError, match="no range"):
        range_test(config, low=0.1, high=float("inf"), steps=100)
    for limit in (1.0, float("nan")):
        with pytest.raises(GptlabError, match="limit="):
            run_range_test(RunSpec(config, "0" * 8, "a test"), Store(tmp_path), Device(None), limit=limit)


def test_a_run_that_stopped_by_itself_diverged_where_it_stopped(tmp_path: Path) -> None:
    """A gradient that is not finite stops training, and no loss shows it."""
    train = {"tokens": 40 * 256, "batch_tokens": 256, "sequence_length": 32}
    config = config_from({"data": {"path": "."}, "model": {"dim": 32, "heads": 2, "layers": 1}, "train": train})
    run, store = RunSpec(config, "0" * 8, "a test"), Store(tmp_path)
    folder = store.folder(run)
    folder.mkdir()
    logged = [{"step": n, "lr_multiplier": 10 ** (n / 10 - 2), "train/loss": 5 - n / 20} for n in range(1, 21)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logged))
    write_failure(folder, Failure(DIVERGED, "step 20: the gradient is not finite", step=20))
    found = run_range_test(run, store, Device(None), limit=1.5)
    assert found.diverged == 1.0
    assert found.cautious == 0.1


@pytest.mark.parametrize("path", ["folder", "picture.pdf", "notes.txt/picture.png"])
def test_a_place_for_no_picture_is_refused_before_training(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(GptlabError, match="--out"):
        check_picture(tmp_path / path)
    check_picture(tmp_path / "new" / "picture.png")
