"""Evidence from run folders: which runs are needed next, which count, what is refused.

The folders are made by hand, in the real format; that real runs make such folders is shown in test_execution.py.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, gptlab, make_data

from gptlab.errors import GptlabError
from gptlab.lab.experiment.design import comparison_run, curve_runs, tuning_runs
from gptlab.lab.experiment.evidence import Evidence, evaluate_experiment, read_verdicts
from gptlab.lab.experiment.ledger import Ledger
from gptlab.lab.experiment.matching import provenance_differences
from gptlab.lab.experiment.metric import Metric
from gptlab.lab.experiment.run_queue import estimate_cost, missing_runs, predict_mismatches
from gptlab.lab.experiment.spec import Experiment, apply_tuning, load_experiment
from gptlab.lab.experiment.tuning import TuningChoice
from gptlab.lab.experiment.verdict import verdict_line, verdict_notes
from gptlab.lab.runs.store import RunSpec, Store
from gptlab.planning.plan import Footprint, plan_run
from gptlab.record.facts import Facts, write_facts
from gptlab.record.runfolder import DIVERGED, Failure, write_failure

STATEMENT = """\
hypothesis: a gate helps
baseline: ../../base.yaml
arms:
  gated: {model: {block: {mlp: SwiGLU}}}
  relu: {model: {block: {mlp: ReLU2}}}
seeds: 8
metric: loss
match: {parameters: 1%}
decision: {smallest_effect: 0.01}
dollars_per_hour: 3.6
"""
FACTS = Facts(1000, 6000.0, 5120, 20, 90.0, 100.0, 1, 10**8, "a card", 1, "float32", "0123abcd", {"torch": "2.13.0"})

EMPTY_WEIGHTS = (2).to_bytes(8, "little") + b"{}"  # a whole safetensors file without a tensor


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_data(tmp_path)
    (tmp_path / "base.yaml").write_text(TINY + "data: {path: data}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def experiment(text: str = STATEMENT) -> Experiment:
    folder = Path("experiments/e")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.yaml").write_text(text)
    return load_experiment(folder)


def finish(store: Store, wanted: RunSpec, loss: float, facts: Facts = FACTS) -> Path:
    """A finished run that ended at `loss`."""
    folder = store.folder(wanted)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    (folder / "model.safetensors").write_bytes(EMPTY_WEIGHTS)
    (folder / "env.json").write_text(json.dumps([{"config_hash": wanted.hash}]))
    rows = [{"step": s, "tokens": 256 * s, "val/loss": loss + (20 - s) / 10, "seconds": float(s)} for s in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_facts(folder, facts)
    return folder


def diverge(store: Store, wanted: RunSpec) -> None:
    """A run that stopped by itself."""
    folder = store.folder(wanted)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    write_failure(folder, Failure(DIVERGED, "step 3: the loss is nan", step=3))


def evaluate(e: Experiment, store: Store, *, strict: bool = False) -> Evidence:
    return evaluate_experiment(Ledger.read(e, store), strict=strict)


def missing(e: Experiment, store: Store, *, seeds: int | None = None) -> list[RunSpec]:
    return missing_runs(evaluate(e, store), seeds=seeds)


def finish_seeds(e: Experiment, store: Store, seeds: range, *, gated: float, relu: float | None) -> None:
    for seed in seeds:
        level = 3.0 + 0.001 * seed
        noise = 0.0005 * (-1) ** seed
        for arm, shift in ((e.baseline, 0.0), (e.arms[0], gated + noise), (e.arms[1], relu)):
            if shift is not None:
                finish(store, comparison_run(e, arm, seed), level + shift)


def test_what_is_needed_goes_seed_by_seed_and_leaves_out_what_is_settled(place: Path) -> None:
    e, store = experiment(), Store()
    first = missing(e, store)
    assert [run.label for run in first[:4]] == ["baseline seed 1", "gated seed 1", "relu seed 1", "baseline seed 2"]
    assert len(first) == 3 * 8
    assert len(missing(e, store, seeds=2)) == 3 * 2
    finish_seeds(e, store, range(1, 6), gated=-0.1, relu=0.02)
    found = {arm.arm.name: arm for arm in evaluate(e, store).arms}
    assert found["gated"].verdict == "better"
    assert found["relu"].verdict == "inconclusive"  # all differences are equal: that is no noise to measure by
    assert {run.label.split()[0] for run in missing(e, store)} == {"baseline", "relu"}
    assert [run.label for run in missing(e.only(["gated"]), store)] == []


def test_a_cost_estimate_counts_runs_by_their_arm_whatever_its_name(place: Path) -> None:
    text = STATEMENT.replace("relu:", "tune:") + "tune: {optimizer.lr: [x0.5, x1]}\n"
    e, store = experiment(text + "compute_curve: {tokens: [2560], seeds: [1]}\n"), Store()
    todo = [run for _, _, run in tuning_runs(e)] + [comparison_run(e, e.arms[1], 1), *curve_runs(e, e.baseline)]
    ahead = estimate_cost(Ledger.read(e, store), todo, {}, None)
    assert ahead.runs == {"baseline": 3, "gated": 2, "tune": 3}
    assert (ahead.reused, ahead.seconds, ahead.dollars) == (0, None, None)


def test_pairs_count_up_to_the_first_gap(place: Path) -> None:
    e, store = experiment(), Store()
    finish_seeds(e, store, range(1, 3), gated=-0.1, relu=0.0)
    finish_seeds(e, store, range(4, 9), gated=-0.1, relu=0.0)  # seed 3 is missing
    evidence = evaluate(e, store)
    assert [pair[0].seed for pair in evidence.arms[0].pairs] == [1, 2]
    assert np.allclose(evidence.arms[0].differences, [-0.1005, -0.0995])
    assert evidence.dollars("gated") == pytest.approx(0.1)  # 100 s at $3.6 an hour


def test_a_verdict_in_words(place: Path) -> None:
    e, store = experiment(), Store()
    assert (
        verdict_line(evaluate(e, store), evaluate(e, store).arms[0]) == "gated: inconclusive, no seed is finished yet"
    )
    finish_seeds(e, store, range(1, 5), gated=-0.002, relu=-0.1)
    evidence = evaluate(e, store)
    said = verdict_line(evidence, evidence.arms[0])
    assert said.startswith("gated: inconclusive after 4 seeds, validation loss (nats a token) -0.002")
    assert "more seed" in said
    assert "$0." in said


def test_a_verdict_as_a_table(place: Path) -> None:
    e, store = experiment(), Store()
    assert "gated" in repr(read_verdicts("experiments/e"))  # with nothing finished yet
    finish_seeds(e, store, range(1, 5), gated=-0.002, relu=-0.1)
    rows = {line.split()[0]: line for line in repr(read_verdicts("experiments/e")).splitlines()[2:]}
    assert "inconclusive" in rows["gated"]
    assert "-0.0020" in rows["gated"]
    assert "-0.1000" in rows["relu"]


def test_eight_percent_more_parameters_get_no_verdict(place: Path) -> None:
    e, store = experiment(), Store()
    for seed in range(1, 7):
        finish(store, comparison_run(e, e.baseline, seed), 3.0 + 0.01 * seed)
        finish(store, comparison_run(e, e.arms[0], seed), 2.0 + 0.011 * seed, replace(FACTS, parameters=1080))
        finish(store, comparison_run(e, e.arms[1], seed), 2.0 + 0.011 * seed, replace(FACTS, parameters=1009))
    gated, relu = evaluate(e, store).arms
    assert gated.verdict == "refused"
    assert gated.refusal == "not matched, parameters: 1.08K against 1K (+8.0%, allowed ±1%)"
    assert relu.verdict == "better"  # 0.9% more is within what was allowed


def test_a_mismatch_is_predicted_from_plans(place: Path) -> None:
    e = experiment(STATEMENT.replace("parameters: 1%", "parameters: 1%, tokens: 0%, time: 5%"))
    footprint = Footprint(256, 1000, 900, 6000.0, 1, False, 1, 1, 1, 1, 1)
    plans = {arm.hash: plan_run(arm.config, footprint) for arm in (e.baseline, e.arms[1])}
    assert predict_mismatches(e, plans) == {}  # nothing is known of the other arm
    plans[e.arms[0].hash] = plan_run(e.arms[0].config, replace(footprint, parameters=1080))
    (found,) = predict_mismatches(e, plans)["gated"]
    assert str(found) == "parameters: 1.08K against 1K (+8.0%, allowed ±1%)"


def test_runs_of_other_code_are_said_or_refused(place: Path) -> None:
    e, store = experiment(), Store()
    finish(store, comparison_run(e, e.baseline, 1), 3.0)
    finish(store, comparison_run(e, e.arms[0], 1), 2.9, replace(FACTS, code="ffffffff", hardware="another card"))
    evidence = evaluate(e, store)
    assert evidence.arms[0].provenance_differences == [
        "seed 1: code ffffffff against 0123abcd",
        "seed 1: hardware another card against a card",
    ]
    assert any("careful" in note for note in verdict_notes(evidence, evidence.arms[0]))
    with pytest.raises(GptlabError, match="arm 'gated', seed 1: code"):
        evaluate(e, store, strict=True)
    assert (
        provenance_differences(FACTS, replace(FACTS, parameters=1, seconds=1.0, wall_seconds=2.0)) == []
    )  # the arm's own affair


def test_each_arm_takes_its_best_point_of_the_grid(place: Path) -> None:
    e, store = experiment(STATEMENT + "tune: {optimizer.lr: [x0.5, x1, x2]}\ntune_seeds: [101, 102]\n"), Store()
    assert len(missing(e, store)) == 3 * 3 * 2  # arms, points, seeds; nothing of the comparison yet
    best = {"baseline": 0, "gated": 2, "relu": 1}
    for arm, point, wanted in tuning_runs(e):
        if arm == "relu" and point == 2:
            diverge(store, wanted)  # the worst there is
        else:
            finish(store, wanted, 3.0 if point == best[arm] else 3.1 + 0.01 * point)
    chosen = Ledger.read(e, store).choices
    assert {arm: e.grid.index(choice.point) for arm, choice in chosen.items()} == best
    rates = {"baseline": 5e-4, "gated": 2e-3, "relu": 1e-3}
    for run in missing(e, store)[:3]:
        assert run.config.optimizer.plain()["lr"] == rates[run.label.split()[0]]
        assert run.config.seed.init == 1
    assert verdict_notes(evaluate(e, store), evaluate(e, store).arms[0]) == [
        "tuned: optimizer.lr = x2",
        "careful: baseline is best at the edge of its grid (optimizer.lr = x0.5), so a wider one may make it better",
        "careful: gated is best at the edge of its grid (optimizer.lr = x2), so a wider one may make it better",
    ]
    assert chosen["relu"].on_grid_edge == []


def test_the_edge_of_a_grid_is_one_of_size() -> None:
    table = [({"lr": lr, "use": use}, 3.0) for lr in (3e-3, "x0.5") for use in ("AdamW", "Muon")]
    assert TuningChoice({"lr": 3e-3, "use": "Muon"}, 3.0, table).on_grid_edge == ["lr = 0.003"]
    assert TuningChoice({"lr": 3e-3}, 3.0, [({"lr": 3e-3}, 3.0)]).on_grid_edge == []  # one point has no edge


def test_an_arm_that_cannot_be_tuned(place: Path) -> None:
    e, store = experiment(STATEMENT + "tune: {optimizer.lr: [x1]}\n"), Store()
    for arm, _, wanted in tuning_runs(e):
        if arm == "gated":
            diverge(store, wanted)
        else:
            finish(store, wanted, 3.0)
    with pytest.raises(GptlabError, match="arm 'gated': no tuning run of it could be finished"):
        Ledger.read(e, store)


def test_the_compute_curve_comes_last_and_shares_the_full_length(place: Path) -> None:
    e, store = experiment(STATEMENT + "compute_curve: {tokens: [2560, 5120], seeds: [1, 2]}\n"), Store()
    curve = list(curve_runs(e, e.baseline))
    assert [run.config.train.tokens for run in curve] == [2560, 2560, 5120, 5120]
    assert curve[2].suffix == comparison_run(e, e.baseline, 1).suffix  # the baseline itself is one of its lengths
    needed = missing(e, store)
    assert len(needed) == 3 * 8 + 2
    assert [run.config.train.tokens for run in needed[-2:]] == [2560, 2560]
    assert apply_tuning(e.baseline, {"train.tokens": 2560}).hash == curve[0].hash


def test_a_run_of_another_length_under_the_same_name_does_not_count(place: Path) -> None:
    e, store = experiment(), Store()
    folder = finish(store, comparison_run(e, e.baseline, 1), 3.0)
    assert store.finished(comparison_run(e, e.baseline, 1)) == folder
    (folder / "env.json").write_text(json.dumps([{"config_hash": "ffffffff"}]))  # it was extended since
    assert store.finished(comparison_run(e, e.baseline, 1)) is None


METRICS = [
    ({"logged": "val/loss"}, 3.0),
    ({"tokens_to": 3.5}, 256 * 15),
    ({"seconds_to": 3.25}, 17.5),
    ({"tokens_to": 4.5}, 2560.0),  # the first validation is there already
]


@pytest.mark.parametrize(("asked", "value"), METRICS)
def test_metrics(place: Path, asked: dict[str, object], value: float) -> None:
    e, store = experiment(), Store()
    assert Metric(**asked).value(finish(store, comparison_run(e, e.baseline, 1), 3.0)) == pytest.approx(value)


def test_metrics_that_a_run_has_not(place: Path) -> None:
    e, store = experiment(), Store()
    folder = finish(store, comparison_run(e, e.baseline, 1), 3.0)
    with pytest.raises(GptlabError, match=r"no run logs 'val/los'; did you mean 'val/loss'"):
        Metric(logged="val/los", better="lower").value(folder)
    with pytest.raises(GptlabError, match=r"never reached 2.5 \(lowest: 3.0000\)"):
        Metric(tokens_to=2.5).value(folder)
    with pytest.raises(GptlabError, match="run `gptlab eval"):
        Metric(accuracy="hellaswag").value(folder)
    (folder / "evals").mkdir()
    (folder / "evals" / "hellaswag.json").write_text(
        json.dumps({"task": "hellaswag", "results": {"acc": 0.2, "acc_norm": 0.25}})
    )
    accuracy = Metric(accuracy="hellaswag")
    assert (accuracy.value(folder), accuracy.lower_is_better) == (0.25, False)


DAMAGE = [
    ("metrics.jsonl", '{"step": 10, "val/l\n{"step": 20}\n', "metrics.jsonl:1: not a row of metrics"),
    ("facts.json", json.dumps({"schema": 0, **asdict(FACTS)}), "of schema 0"),
    ("facts.json", "{", "facts.json: damaged"),
]


@pytest.mark.parametrize(("file", "content", "cause"), DAMAGE)
def test_damaged_runs_are_named_and_left_as_they_are(place: Path, file: str, content: str, cause: str) -> None:
    e, store = experiment(), Store()
    finish_seeds(e, store, range(1, 3), gated=-0.1, relu=-0.1)
    path = store.folder(comparison_run(e, e.baseline, 2)) / file
    path.write_text(content)
    with pytest.raises(GptlabError) as refusal:
        Ledger.read(e, store)
    assert cause in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert path.read_text() == content


def test_the_command_refuses_a_damaged_run_before_it_trains(place: Path) -> None:
    e, store = experiment(), Store()
    finish_seeds(e, store, range(1, 8), gated=-0.1, relu=-0.1)
    (store.folder(comparison_run(e, e.baseline, 2)) / "facts.json").write_text("{")
    before = sorted(Path("runs").iterdir())
    done = gptlab("run", "experiments/e", "--yes", "--no-probe", cwd=place, check=False)
    assert done.returncode == 2
    assert "facts.json: damaged" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(Path("runs").iterdir()) == before


def test_a_torn_last_line_is_tolerated_and_said(place: Path) -> None:
    e, store = experiment(), Store()
    finish_seeds(e, store, range(1, 9), gated=-0.1, relu=-0.1)
    path = store.folder(comparison_run(e, e.baseline, 2)) / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 30, "val')
    done = gptlab("run", "experiments/e", "--yes", "--no-probe", cwd=place)
    assert "the last line is torn" in done.stderr
    assert "gated: better after 8 seeds" in done.stdout
