"""Identity of values: whatever a metric was read from is changed, one thing at a time, and no verdict comes of it.

The folders are made by hand in the real format, as in test_evidence.py; that real runs write these identities is shown
at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import TINY, make_data, plain_json

import gptlab
from gptlab.config import load_config
from gptlab.errors import ConfigError, DataError, GptlabError
from gptlab.lab.experiment.design import comparison_run, curve_runs, tuning_runs
from gptlab.lab.experiment.evidence import ArmEvidence, evaluate_experiment
from gptlab.lab.experiment.ledger import Ledger
from gptlab.lab.experiment.run_queue import missing_runs
from gptlab.lab.experiment.spec import Experiment, load_experiment
from gptlab.lab.experiment.verdict import verdict_line, verdict_notes
from gptlab.lab.runs.store import RunSpec, Store
from gptlab.lab.stats.decision import VERDICTS, Rule, Verdict, judge
from gptlab.lab.stats.sequential import sequential_test
from gptlab.record.evaluation import Evaluation
from gptlab.record.facts import Facts, read_facts, write_facts

STATEMENT = """\
hypothesis: a gate helps
baseline: ../../base.yaml
arms: {gated: {model: {block: {mlp: SwiGLU}}}}
seeds: 4
metric: METRIC
match: {}
decision: {smallest_effect: 0.01}
"""
FACTS = Facts(1000, 6000.0, 5120, 20, 90.0, 100.0, 1, 10**8, "a card", 1, "float32", "0123abcd", {"torch": "2.13.0"})
SETTINGS = {
    "step": 20,
    "limit": None,
    "sha256": "ab" * 32,
    "tokenizer": {"name": "letters", "hash": "cd" * 32},
    "context_length": 32,
    "dtype": "float32",
    "version": "1.1",
}
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_data(tmp_path)
    (tmp_path / "base.yaml").write_text(TINY + "data: {path: data}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def experiment(metric: str, more: str = "") -> Experiment:
    folder = Path("experiments/e")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.yaml").write_text(STATEMENT.replace("METRIC", metric) + more)
    return load_experiment(folder)


def finish(e: Experiment, wanted: RunSpec, value: float, identity: dict[str, str] | None, settings: Any = None) -> Path:
    """A finished run: `value` is its loss, or the accuracy of the task that its `settings` are of."""
    folder = Store().folder(wanted)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    session = {"config_hash": wanted.hash} | ({"validation": identity} if identity is not None else {})
    (folder / "env.json").write_text(json.dumps([session]))
    rows = [
        {"step": s, "tokens": 256 * s, "val/loss": value + (20 - s) / 10, "val/bits_per_byte": value, "seconds": s}
        for s in (10, 20)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_facts(folder, replace(FACTS, weights=f"{abs(hash(str(folder))):016x}"[:16]))
    if settings is not None:
        results = {"acc": value, "acc_norm": value, "questions": 60}
        weights = read_facts(folder).weights
        found = Evaluation("hellaswag", results, {}, {"weights": weights, **settings})
        found.write(folder / "evals" / "hellaswag.json")
    return folder


def pairs(e: Experiment, change: Change | None = None, *, effect: float = -0.1, settings: Any = None) -> ArmEvidence:
    """The evidence of four pairs with an effect that nobody could miss; `change` is done to what the arm's values were
    read from."""
    for seed in range(1, 5):
        noise = 0.0005 * (-1) ** seed
        for arm, value in ((e.baseline, 3.0), (e.arms[0], 3.0 + effect + noise)):
            identity, given = dict(arm.measured_on), None if settings is None else dict(settings)
            if change is not None and arm is not e.baseline:
                change(given if given is not None else identity)
            value = value if settings is None else round((value - 2.5) * 60) / 60
            finish(e, comparison_run(e, arm, seed), value, identity, given)
    (found,) = evaluate_experiment(Ledger.read(e, Store())).arms
    return found


VALIDATION = {
    "validation data": "0123456789ab",
    "eval.tokens": "1024",
    "window": "64 tokens",
    "tokenizer": "0123456789ab",
    "scorer": "2",
}


@pytest.mark.parametrize("metric", ["loss", "bits_per_byte", "{tokens_to: 3.95}", "{seconds_to: 3.95}"])
def test_equal_identities_are_compared(place: Path, metric: str) -> None:
    assert pairs(experiment(metric)).refusal is None


@pytest.mark.parametrize("metric", ["loss", "bits_per_byte", "{tokens_to: 3.95}", "{seconds_to: 3.95}"])
@pytest.mark.parametrize("changed", VALIDATION)
def test_whatever_a_validation_is_read_from_belongs_to_it(place: Path, metric: str, changed: str) -> None:
    found = pairs(experiment(metric), lambda identity: identity.update({changed: VALIDATION[changed]}))
    assert found.verdict == "refused"
    assert found.refusal is not None
    assert f"seed 1: {changed} {VALIDATION[changed]} against" in found.refusal


def test_when_a_run_was_validated_belongs_to_the_crossing_of_a_loss(place: Path) -> None:
    e = experiment("{tokens_to: 3.95}")
    pairs(e)
    log = Store().folder(comparison_run(e, e.arms[0], 1)) / "metrics.jsonl"
    log.write_text(json.dumps({"step": 15, "tokens": 3840, "val/loss": 3.9}) + "\n" + log.read_text().split("\n")[1])
    found = evaluate_experiment(Ledger.read(e, Store())).arms[0]
    assert found.refusal is not None
    assert "validations 2, at step 15 first against 2, at step 10 first" in found.refusal


def test_a_metric_of_the_training_batches_asks_nothing_of_the_validation(place: Path) -> None:
    e = experiment("{logged: seconds, better: lower}")
    found = pairs(e, lambda identity: identity.update(VALIDATION))
    assert found.refusal is None


def test_bits_per_byte_of_the_same_text_compare_whatever_the_tokenizer(place: Path) -> None:
    other = {"validation data": "0123456789ab", "tokenizer": "0123456789ab"}
    e = experiment("bits_per_byte", "common: {eval: {tokens: null}}\n")
    assert pairs(e, lambda identity: identity.update(other)).refusal is None
    for folder in Path("runs").iterdir():
        text = json.dumps(plain_json(folder / "env.json"))
        if '"0123456789ab"' in text:
            (folder / "env.json").write_text(text.replace(" bytes", "1 bytes"))
    (found,) = evaluate_experiment(Ledger.read(e, Store())).arms
    assert found.refusal is not None
    assert "validation text" in found.refusal


QUESTIONS: dict[str, Any] = {
    "sha256": "ef" * 32,
    "tokenizer": {"name": "letters", "hash": "ef" * 32},
    "context_length": 64,
    "dtype": "bfloat16",
    "version": "1.2",
}


@pytest.mark.parametrize("changed", QUESTIONS)
def test_whatever_an_accuracy_is_read_from_belongs_to_it(place: Path, changed: str) -> None:
    def change(settings: dict[str, Any]) -> None:
        settings[changed] = QUESTIONS[changed]

    found = pairs(experiment("{accuracy: hellaswag}"), change, settings=SETTINGS)
    assert found.verdict == "refused"


@pytest.mark.parametrize("change", [{"limit": 2}, {"step": 8}, {"weights": "0123456789abcdef"}])
def test_an_accuracy_of_a_part_or_of_other_weights_is_evaluated_anew(place: Path, change: dict[str, Any]) -> None:
    e = experiment("{accuracy: hellaswag}")
    found = pairs(e, lambda settings: settings.update(change), settings=SETTINGS)
    assert found.pairs == []
    todo = missing_runs(evaluate_experiment(Ledger.read(e, Store())))
    assert {run.arm for run in todo} == {"gated"}
    assert all(Store().is_finished(Store().folder(run)) for run in todo)  # trained already: only evaluated


def test_what_is_not_known_of_an_older_run_is_said(place: Path) -> None:
    found = pairs(experiment("loss"), lambda identity: identity.clear() or identity.update({}))
    assert found.refusal is None
    e = experiment("loss")
    for folder in Path("runs").iterdir():
        session = plain_json(folder / "env.json")[0]
        session.pop("validation")
        (folder / "env.json").write_text(json.dumps([session]))
    evidence = evaluate_experiment(Ledger.read(e, Store()))
    assert evidence.arms[0].refusal is None
    notes = " ".join(verdict_notes(evidence, evidence.arms[0]))
    assert "of 4 pairs it is not known what the metric was read from" in notes


@pytest.mark.parametrize("use", ["tuning", "curve"])
def test_what_is_ranked_or_fitted_together_is_of_one_kind(place: Path, use: str) -> None:
    more = (
        "tune: {optimizer.lr: [x0.5, x1]}\n"
        if use == "tuning"
        else "compute_curve: {tokens: [2560, 5120], seeds: [1]}\n"
    )
    e = experiment("loss", more)
    runs = [run for _, _, run in tuning_runs(e)] if use == "tuning" else list(curve_runs(e, e.baseline))
    for number, run in enumerate(runs):
        identity = dict(e.baseline.measured_on) | ({"validation data": "0123456789ab"} if number else {})
        finish(e, run, 3.0 - number / 10, identity)
    with pytest.raises(GptlabError, match=r"were measured on different things, validation data 0123456789ab against"):
        Ledger.read(e, Store())


def test_runs_to_come_are_measured_as_those_that_are_there(place: Path) -> None:
    e = experiment("loss")
    finish(e, comparison_run(e, e.baseline, 1), 3.0, e.baseline.measured_on | {"validation data": "0123456789ab"})
    with pytest.raises(GptlabError, match=r"seed1 was validated on something else than the runs to come would be"):
        missing_runs(evaluate_experiment(Ledger.read(e, Store())))


def test_an_arm_that_would_be_measured_otherwise_is_refused_before_its_first_run(place: Path) -> None:
    arms = "arms: {gated: {model: {block: {mlp: SwiGLU}}}}"
    experiment("loss")
    for diff in ("{eval: {tokens: 64}}", "{eval: {sequence_length: 16}}", "{train: {sequence_length: 64}}"):
        text = STATEMENT.replace("METRIC", "loss").replace(arms, f"arms: {{gated: {diff}}}")
        Path("experiments/e/experiment.yaml").write_text(text)
        with pytest.raises(ConfigError, match="arm 'gated' would be measured on something else than the baseline"):
            load_experiment("experiments/e")
    Path("experiments/e/experiment.yaml").write_text(text + "common: {eval: {sequence_length: 32}}\n")
    assert load_experiment("experiments/e").arms[0].measured_on["window"] == "32 tokens"


def test_equal_accuracies_of_other_weights_are_no_sameness(place: Path) -> None:
    e = experiment("{accuracy: hellaswag}")
    found = pairs(e, effect=0.0, settings=SETTINGS)
    assert list(found.differences) == [0.0] * 4
    assert found.verdict == "inconclusive"
    assert "between -0.0272 and +0.0272" in found.decision.sentence  # no more than three steps of 1/60 say


def test_equal_values_of_other_weights_are_no_sameness(place: Path) -> None:
    """A metric of which no step is known: that it cannot see a difference does not say that there is none."""
    found = pairs(experiment("{logged: seconds, better: lower}"))
    assert list(found.differences) == [0.0] * 4
    assert found.verdict == "inconclusive"
    assert "exactly 0 though the weights differ: the metric is too coarse" in found.decision.sentence


def test_a_coarse_metric_errs_no_more_often_than_the_rule_says() -> None:
    """60 questions of which few are answered otherwise, and the smallest effect that matters is true: to call it none
    is the error of at most 5% that the rule promises. Without its step the metric errs far more often."""
    rng, step = np.random.default_rng(0), 1 / 60
    shares = {}
    for resolution in (0.0, step):
        for up, down in ((1.0, 0.0), (0.5, 0.0), (1.5, 0.5)):  # questions won and lost, on average
            won, lost = rng.poisson(up, (2000, 8)), rng.poisson(down, (2000, 8))
            rule = Rule.planned(
                seeds=8, smallest_effect=(up - down) * step, lower_is_better=False, resolution=resolution
            )
            test = sequential_test((won - lost) * step, g=rule.g, alpha=rule.alpha, resolution=resolution)
            wrong = judge(test, test.p, rule) == VERDICTS.index(Verdict.NO_DIFFERENCE)
            shares[resolution, up] = float(wrong.any(axis=1).mean())
    assert max(share for (resolution, _), share in shares.items() if resolution) <= 0.05, shares
    assert max(share for (resolution, _), share in shares.items() if not resolution) > 0.1, shares


def test_a_real_run_says_what_it_was_validated_on_and_its_digests(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = gptlab.train(load_config("base.yaml", ["train.tokens=1280", "checkpoint.every=3"]))
    session = plain_json(run.folder / "env.json")[0]
    assert session["validation"] == experiment("loss").baseline.measured_on
    weights = run.folder / "model.safetensors"
    assert read_facts(run.folder).weights == run.weights
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    capsys.readouterr()
    gptlab.load(run.folder)
    assert "model.safetensors was changed or damaged since the run ended" in capsys.readouterr().err


def test_a_run_is_not_resumed_on_another_validation_text(place: Path) -> None:
    settings = ["train.tokens=1280", "checkpoint.every=3"]
    run = gptlab.train(load_config("base.yaml", settings))
    (run.folder / "model.safetensors").unlink()
    (run.folder / "facts.json").unlink()
    session = plain_json(run.folder / "env.json")
    session[0]["validation"]["validation data"] = "0123456789ab"
    (run.folder / "env.json").write_text(json.dumps(session))
    with pytest.raises(
        DataError, match=r"was validated on something else so far, validation data 0123456789ab against"
    ):
        gptlab.train(load_config("base.yaml", settings), resume=True)


def test_the_verdict_line_of_a_refused_pair_says_how_to_mend_it(place: Path) -> None:
    e = experiment("loss")
    pairs(e, lambda identity: identity.update({"validation data": "0123456789ab"}))
    evidence = evaluate_experiment(Ledger.read(e, Store()))
    line = verdict_line(evidence, evidence.arms[0])
    assert line.startswith("gated: no verdict, its runs and the baseline's were measured on different things, seed 1:")
    assert line.endswith("to train them anew, or evaluate both again")


def test_pairs_without_a_lost_run_still_count(place: Path) -> None:
    """The baseline's seed 1 was extended where it was, as gptlab 0.3 did."""
    e, store = experiment("loss"), Store()
    pairs(e)
    lost = comparison_run(e, e.baseline, 1)
    own = Path("runs") / f"{lost.config.name}{lost.suffix}"
    (own / "env.json").write_text(json.dumps([{"config_hash": "ffffffff"}]))
    evidence = evaluate_experiment(Ledger.read(e, store))
    assert [ours.seed for ours, _ in evidence.arms[0].pairs] == [2, 3, 4]
    assert store.folder(lost).name == f"{lost.config.name}-again{lost.suffix}"  # where it is trained again
    finish(e, lost, 3.0, dict(e.baseline.measured_on))
    assert len(evaluate_experiment(Ledger.read(e, store)).arms[0].pairs) == 4


def test_validation_text_that_was_trained_on_is_said_beside_the_verdict(place: Path) -> None:
    e = experiment("loss")
    pairs(e)
    evidence = evaluate_experiment(Ledger.read(e, Store()))
    assert not any("training text" in note for note in verdict_notes(evidence, evidence.arms[0]))
    described = plain_json(Path("data/dataset.json"))
    described["shared_documents"] = {"train": 3, "validation": 2}
    Path("data/dataset.json").write_text(json.dumps(described))
    notes = verdict_notes(evidence, evidence.arms[0])
    assert any("of the validation text 2 documents are training text too" in note for note in notes)
