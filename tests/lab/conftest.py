"""What the tests of reports share: an experiment that was really run, small."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
from helpers import TINY, make_data

STATEMENT = """\
hypothesis: A gate lowers the loss of a 100% tiny model_.
baseline: ../../base.yaml
arms:
  gated_1: {model: {block: {mlp: {use: SwiGLU, multiple_of: 1}}}}
  again: baseline
seeds: [1, 2, 3]
metric: loss
match: {tokens: 0%, flops: 5%}
decision: {smallest_effect: 0.01, minimum_seeds: 3}
compute_curve: {tokens: [1280, 2560], seeds: [1, 2]}
"""


@pytest.fixture(scope="session")
def lab_experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, base.yaml, experiments/gate and its finished runs/. Copy it (`lab`) before changing it."""
    from gptlab.lab.experiment.evidence import evaluate_experiment
    from gptlab.lab.experiment.ledger import Ledger
    from gptlab.lab.experiment.run_queue import missing_runs
    from gptlab.lab.experiment.spec import load_experiment
    from gptlab.lab.runs.store import Store
    from gptlab.training.loop import train

    place = tmp_path_factory.mktemp("experiment")
    make_data(place)
    (place / "base.yaml").write_text(TINY.replace("5120", "2560") + "data: {path: data}\n")
    (place / "experiments" / "gate").mkdir(parents=True)
    (place / "experiments" / "gate" / "experiment.yaml").write_text(STATEMENT)
    with contextlib.chdir(place):
        experiment, store = load_experiment("experiments/gate"), Store()
        while missing := missing_runs(evaluate_experiment(Ledger.read(experiment, store))):
            train(missing[0].config, folder=store.folder(missing[0]))
    for folder in ("code", "checkpoints"):  # hundreds of small files that no report reads
        for path in place.glob(f"runs/*/{folder}"):
            shutil.rmtree(path)
    return place


@pytest.fixture
def lab(lab_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The experiment's folder in a copy of its own, which is the working folder."""
    place = tmp_path / "lab"
    shutil.copytree(lab_experiment, place)
    monkeypatch.chdir(place)
    return place / "experiments" / "gate"
