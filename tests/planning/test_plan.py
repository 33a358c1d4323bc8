"""Plans: the arithmetic, a probe held against a real run, the table of the manual, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from helpers import TINY, gptlab, make_data, only_run, rows
from planning.samples import FOOTPRINT, PROBE, config

from gptlab.config import load_config
from gptlab.hardware.gpus import read_gpus
from gptlab.planning import plan as planning
from gptlab.planning import records
from gptlab.planning.plan import Plan, Price, plan_run
from gptlab.planning.subprocesses import plan_in_subprocess

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planning")
    make_data(folder)
    (folder / "config.yaml").write_text(TINY + "data: {path: data}\nname: tiny\n")
    return folder


# ---------------------------------------------------------------- arithmetic


def test_a_probe_is_added_up() -> None:
    plan = plan_run(config(**{"checkpoint.every": 40}), FOOTPRINT, probe=PROBE, price=Price(36.0))
    assert (plan.steps, plan.tokens, plan.validations) == (100, 25_600, 4)  # at 30, 60, 90 and the end
    assert plan.startup_seconds == 5.0
    assert plan.training_seconds == 1 + 100 * 0.5
    assert plan.validation_seconds == 4 * 2.0
    assert plan.saving_seconds == 3 * 0.25 + 0.5 + 1.5  # at 40, 80 and the end
    assert plan.seconds == 5 + 51 + 8 + 2.75
    assert plan.spread == pytest.approx(1.25)
    assert plan.flops == 25_600 * 600
    assert plan.dollars == pytest.approx(66.75 / 100)
    assert plan.dollars_with_overhead == pytest.approx(36 + 0.6675)
    prediction = plan.prediction()
    assert prediction is not None
    assert prediction.seconds == 66.75 - 3 - 1.5  # what the run's own clock counts
    assert prediction.peak_memory == 10_000


@pytest.mark.parametrize(("every", "best", "saves"), [(0, False, 1), (50, False, 2), (100, False, 1), (0, True, 4)])
def test_checkpoints_are_counted_as_the_loop_saves_them(every: int, best: bool, saves: int) -> None:
    assert (
        planning.count_checkpoints(config(**{"checkpoint.every": every, "checkpoint.best": str(best).lower()})) == saves
    )


def test_validations_are_counted_as_the_loop_makes_them() -> None:
    assert planning.count_validations(config()) == 4
    assert planning.count_validations(config(**{"eval.at_start": "true"})) == 5
    assert planning.count_validations(config(**{"eval.at_start": "true", "eval.every": 0})) == 2


def test_a_card_of_the_table() -> None:
    card = dataclasses.replace(
        read_gpus()["RTX 4090"], peak=1e6, bandwidth=1e6, memory=10_000, dollars_per_hour=1.0, priced="2026-11"
    )
    plan = plan_run(config(), FOOTPRINT, gpu=card, validation_tokens=512)
    compute = 256 * 600 / (1e6 * planning.MATMUL_EFFICIENCY)
    moved = 2 * (3 * 1000 + 4 * 500) + 2 * 1600  # two micro-batches, and the optimizer's step
    step = compute + moved / (1e6 * planning.BANDWIDTH_EFFICIENCY)
    assert plan.training_seconds == pytest.approx(100 * step)
    assert plan.validation_seconds == pytest.approx(4 * 512 / 256 * step / 3)
    four = plan_run(config(), dataclasses.replace(FOOTPRINT, micro_batch=2), gpu=card, devices=4, validation_tokens=512)
    assert four.training_seconds is not None
    assert plan.training_seconds is not None
    assert four.training_seconds > plan.training_seconds / 4  # never better than linear
    assert four.dollars_per_hour == 4.0
    assert any("90% of 4 times" in text for text in four.assumptions)
    assert any("without validation" in text for text in plan_run(config(), FOOTPRINT, gpu=card).assumptions)


def test_h200_as_measured() -> None:
    """GPT-2 124M, T 1024, 32 sequences: 486,000 tokens/s and 16.3 GB compiled, 32.6 GB eager with the fused GELU
    (docs/reference/benchmarks.md)."""
    from gptlab.planning.footprint import footprint

    gpt2 = load_config(
        ROOT / "src/gptlab/config/presets" / "gpt2.yaml", ["train.batch_tokens=32768", "train.tokens=32768000"]
    )
    found = footprint(gpt2, 50257, 32, accelerator=True, compiled=True)
    plan = plan_run(gpt2, found, gpu=read_gpus()["H200"])
    assert plan.training_seconds is not None
    assert plan.tokens / plan.training_seconds == pytest.approx(485_971, rel=0.15)
    assert found.total == pytest.approx(16.3e9, rel=0.15)
    fused = load_config("gpt2", ["model.block.mlp.approximate=tanh"])
    assert footprint(fused, 50257, 32, accelerator=True).total == pytest.approx(32.6e9, rel=0.1)


def test_no_time_without_a_probe_or_a_card() -> None:
    plan = plan_run(config(), FOOTPRINT)
    assert (plan.seconds, plan.dollars, plan.prediction(), plan.basis) == (None, None, None, "none")
    assert plan.peak_memory == FOOTPRINT.total


def test_a_plan_survives_json() -> None:
    plan = plan_run(config(), FOOTPRINT, probe=PROBE, price=Price(1.0))
    plain = json.loads(json.dumps(plan.plain()))
    assert Plan.from_plain(plain) == plan
    plain["batch_rows"] = plain.pop("sequences_per_step")  # as gptlab 0.3 wrote it
    assert Plan.from_plain(plain) == plan


# ---------------------------------------------------------------- predicted against actual


@pytest.mark.slow
def test_probe_and_run_agree(folder: Path) -> None:
    """A plan in a process of its own, the run it speaks of, and the comparison that the next plan shows."""
    plan = plan_in_subprocess(
        Path("config.yaml"), ["eval.every=5"], ["--probe-seconds", "1", "--rate", "0.5"], cwd=folder
    )
    assert plan.basis == "probe"
    assert plan.footprint.micro_batch == 8
    assert plan.dollars_per_hour == 0.5
    done = gptlab("train", "config.yaml", "--set", "eval.every=5", cwd=folder)
    assert "the plan had said" in done.stderr
    run = only_run(folder)
    assert plan.validations == sum("val/loss" in row for row in rows(run))
    assert records.read_prediction(run) == plan.prediction()
    found = records.compare_prediction(run)
    assert 0.7 < found.peak_memory < 1.3  # time is not asserted: the machine is shared
    assert found.seconds is not None
    done = gptlab("plan", "config.yaml", "--no-probe", cwd=folder)
    assert "Predicted ÷ actual of 1 finished runs" in done.stdout
    assert "name a card with --gpu" in done.stdout
    assert not list(folder.glob("**/gptlab-probe-*"))
    other = gptlab("train", "config.yaml", "--set", "train.tokens=2560", cwd=folder)
    assert "plan" not in other.stderr  # what was planned is another run


# ---------------------------------------------------------------- the command


def test_the_command_on_a_card(folder: Path) -> None:
    arguments = ("plan", "config.yaml", "--gpu", "rtx 4090", "--gpus", "4", "--budget", "5")
    text = gptlab(*arguments, cwd=folder, COLUMNS="80").stdout
    assert max(map(len, text.splitlines())) <= 120
    for part in (
        "weights",
        "4 × RTX 4090",
        "with 60 minutes",
        "Chinchilla-optimal",
        "Nearest beside this config: config",
    ):
        assert part in text


def test_the_command_as_json(folder: Path) -> None:
    found = json.loads(gptlab("plan", "config.yaml", "--no-probe", "--json", cwd=folder).stdout)
    assert Plan.from_plain(found["plan"]).basis == "none"
    assert found["plan"]["seconds"] is found["probe"] is found["budget"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "RTX 4091"], "did you mean 'RTX 4090'"),
        (["--gpu", "T4", "--budget", "0.2"], "60 minutes of overhead alone cost $0.30"),
        (["--gpu", "RTX 4060", "--set", "model.dim=16384"], "does not fit"),
        (["--gpu", "T4", "--gpus", "3"], "8 sequences a step cannot be shared by so many; take 2"),
        (["--gpu", "T4", "--probe"], "give one of them"),
        (["--gpus", "2"], "of which kind?"),
        (["--probe", "--set", "data.path=nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(folder: Path, arguments: list[str], message: str) -> None:
    done = gptlab("plan", "config.yaml", *arguments, cwd=folder, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# ---------------------------------------------------------------- the manual


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("baseline_plans", ROOT / "scripts" / "baseline_plans.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_smallest_baseline_of_the_manual_is_up_to_date() -> None:
    script = _script()
    shown = [
        row.split(" | ")[:2] for row in script.MARKS.search(script.PAGE.read_text(encoding="utf-8"))[0].splitlines()
    ]
    made = [row.strip("| ").split(" | ") for row in script.table(["gptlab-xs"]).splitlines()]
    for cells in (row for row in made if "×" in row[0]):
        assert [f"| {cells[0]}", cells[1]] in shown


@pytest.mark.slow
def test_the_table_of_the_manual_is_up_to_date() -> None:
    script = _script()
    assert script.table() in script.PAGE.read_text(encoding="utf-8"), "run scripts/baseline_plans.py --write"
