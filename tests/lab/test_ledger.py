"""The ledger: every run is read once, and what is said of an experiment needs no file any more."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gptlab.errors import GptlabError
from gptlab.lab.experiment import ledger as module
from gptlab.lab.experiment.evidence import evaluate_experiment
from gptlab.lab.experiment.ledger import COMPARISON, CURVE, Ledger
from gptlab.lab.experiment.run_queue import estimate_cost, missing_runs
from gptlab.lab.experiment.spec import load_experiment
from gptlab.lab.experiment.verdict import verdict_line, verdict_notes
from gptlab.lab.report.findings import used_runs
from gptlab.lab.runs.store import Store


def test_every_run_is_read_once(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = Counter[str](), module.read_facts

    def counted(folder: Path) -> Any:
        read[folder.name] += 1
        return real(folder)

    monkeypatch.setattr(module, "read_facts", counted)
    ledger = Ledger.read(load_experiment(lab), Store())
    assert set(read) == {path.parent.name for path in Path("runs").glob("*/facts.json")}
    assert set(read.values()) == {1}
    assert {record.use for record in used_runs(ledger)} == {COMPARISON, CURVE}
    assert len(used_runs(ledger)) == len(read)  # the curve's full length is the baseline's own run


def test_what_follows_from_a_ledger_needs_no_file(lab: Path) -> None:
    ledger = Ledger.read(load_experiment(lab), Store())
    shutil.rmtree("runs")
    evidence = evaluate_experiment(ledger)
    assert [len(found.pairs) for found in evidence.arms] == [3, 3]
    assert all(verdict_line(evidence, found) and verdict_notes(evidence, found) for found in evidence.arms)
    assert missing_runs(evidence) == []
    assert estimate_cost(ledger, [], {}, None).reused == 9
    assert len(used_runs(ledger)) == 11
    empty = Ledger.read(ledger.experiment, Store())
    assert all(record.is_missing for record in empty.records)


def test_a_run_whose_weights_are_cut_short_is_refused(lab: Path) -> None:
    (run,) = Path("runs").glob("gate-gated_1-*-seed2")
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(GptlabError, match=f"{run.name}: damaged, a file is missing or cut short"):
        Ledger.read(load_experiment(lab), Store())
