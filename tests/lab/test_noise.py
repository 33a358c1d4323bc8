"""The noise ledger: its estimators on made numbers, and the command on real runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, gptlab, make_data
from scipy import stats

from gptlab.config import config_from
from gptlab.errors import GptlabError
from gptlab.lab.runs.store import Store
from gptlab.lab.studies.noise import design_noise_runs, noise_path, read_noise, variance_components

SHORT = TINY.replace("5120", "1280")


def test_components_are_chi_square_where_hardware_adds_nothing() -> None:
    values = [3.0, 3.1, 2.9, 3.05, 3.2]
    found = variance_components({"initialization": values, "data order": [3.0, 3.02, 2.99], "hardware": [3.0, 3.0]})
    part = found["initialization"]
    variance = float(np.var(values, ddof=1))
    assert part.variance == pytest.approx(variance)
    assert part.low == pytest.approx(4 * variance / stats.chi2.ppf(0.975, 4), rel=0.02)
    assert part.high == pytest.approx(4 * variance / stats.chi2.ppf(0.025, 4), rel=0.02)
    assert found["hardware"].variance == found["hardware"].high == 0
    assert found["total"].variance == pytest.approx(variance + np.var([3.0, 3.02, 2.99], ddof=1))


def test_hardware_is_taken_off_and_never_below_zero() -> None:
    noisy, calm = [3.0, 3.4, 2.6], [3.0, 3.01, 2.99]
    found = variance_components({"initialization": calm, "data order": noisy, "hardware": [3.0, 3.1]})
    assert found["initialization"].variance == 0
    assert found["data order"].variance == pytest.approx(np.var(noisy, ddof=1) - 0.005)


def test_intervals_cover_the_truth() -> None:
    """The total's interval holds the true variance in about 95% of made ledgers with noise of all three kinds."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        groups = {
            "initialization": rng.normal(0, np.hypot(0.02, 0.01), 8).tolist(),
            "data order": rng.normal(0, np.hypot(0.01, 0.01), 8).tolist(),
            "hardware": rng.normal(0, 0.01, 8).tolist(),
        }
        total = variance_components(groups)["total"]
        held += total.low <= 0.02**2 + 2 * 0.01**2 <= total.high
    assert 180 <= held <= 199


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the ledger of a tiny config has been made, and an experiment waits."""
    folder = tmp_path_factory.mktemp("noise")
    make_data(folder)
    (folder / "base.yaml").write_text(SHORT + "data: {path: data}\n")
    (folder / "experiments/more").mkdir(parents=True)
    (folder / "experiments/more/experiment.yaml").write_text(
        "hypothesis: warmth\nbaseline: ../../base.yaml\narms: {hot: {optimizer: {lr: 3e-3}}}\n"
        "seeds: 6\ndecision: {smallest_effect: 0.001}\n"
    )
    return folder


@pytest.mark.slow
def test_the_command_writes_a_ledger_that_run_plans_with(place: Path) -> None:
    done = gptlab("noise", "base.yaml", "--seeds", "2", "--yes", "--no-probe", cwd=place)
    assert "initialization" in done.stdout
    assert "hardware adds exactly nothing" in done.stderr
    (path,) = (place / "runs/.noise").glob("*.json")
    store = Store(place / "runs")
    noise = read_noise(store, path.stem)
    assert noise is not None
    assert [len(values) for values in noise.groups.values()] == [2, 2, 2]
    assert noise.groups["hardware"][0] == noise.groups["hardware"][1]
    assert noise.groups["initialization"][0] != noise.groups["initialization"][1]
    assert noise.groups["data order"][0] != noise.groups["data order"][1]
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    again = gptlab("noise", "base.yaml", "--seeds", "2", "--yes", cwd=place)
    assert "every run is there already" in again.stderr
    planned = gptlab("run", "experiments/more", "--dry-run", "--no-probe", cwd=place)
    assert f"with a noise of {noise.paired_sd:.2g} a difference and 6 seeds" in planned.stderr
    path.write_text("{")
    with pytest.raises(GptlabError, match="damaged"):
        read_noise(store, path.stem)


def test_too_few_runs_are_refused(place: Path, tmp_path: Path) -> None:
    config = config_from({"data": {"path": str(place / "data")}, "model": {"dim": 32, "heads": 2, "layers": 1}})
    store = Store(tmp_path)
    with pytest.raises(GptlabError, match="seeds=1"):
        design_noise_runs(config, store, seeds=1, repeats=2)
    with pytest.raises(GptlabError, match="repeats=1"):
        design_noise_runs(config, store, seeds=2, repeats=1)
    assert read_noise(store, "00000000") is None
    assert noise_path(store, "0") == tmp_path / ".noise/0.json"
