"""Predictions on disk, and how good they were."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gptlab.errors import GptlabError
from gptlab.planning import records
from gptlab.planning.plan import Prediction
from gptlab.record.facts import Facts, write_facts


def test_a_prediction_is_held_against_the_facts(tmp_path: Path) -> None:
    facts = Facts(1, 1.0, 1, 1, 50.0, 80.0, 1, 2000, "Abacus", 1, "float32", "", {})
    for number, (time, memory) in enumerate([(40.0, 2000), (80.0, 3000), (120.0, 1000)]):
        run = tmp_path / "runs" / f"r{number}"
        records.write_prediction(run, Prediction("Abacus", "probe", 25.0, time, memory))
        write_facts(run, facts)
    records.write_prediction(tmp_path / "runs" / "unfinished", Prediction("Abacus", "probe", 1.0, 1.0, 1))
    found = records.past_predictions(tmp_path / "runs")
    assert [c.seconds for c in found] == [0.5, 1.0, 1.5]
    assert found[0].training_seconds == 0.5
    assert records.median_ratios(found) == (1.0, 1.0)
    write_facts(tmp_path / "runs" / "r0", dataclasses.replace(facts, sessions=2))
    assert records.compare_prediction(tmp_path / "runs" / "r0").seconds is None  # its clock began anew
    with pytest.raises(GptlabError, match="nothing was predicted"):
        records.compare_prediction(tmp_path)
    (tmp_path / "runs" / "r1" / "plan.json").write_text("{")
    with pytest.raises(GptlabError, match=r"plan.json: damaged"):
        records.past_predictions(tmp_path / "runs")
