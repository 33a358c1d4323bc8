"""`gptlab list`: everything that was tried, what is broken too, and what a clone without runs can know."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from helpers import gptlab, plain_json

from gptlab.lab.experiment.spec import load_experiment
from gptlab.lab.report.findings import read_findings
from gptlab.lab.report.registry import list_experiments, list_runs
from gptlab.lab.report.tables import report_json
from gptlab.lab.runs.store import Store
from gptlab.record.runfolder import DIVERGED, Failure, write_failure


def test_sound_broken_and_untried(lab: Path) -> None:
    shutil.copytree(lab, lab.parent / "untried")
    statement = lab.parent / "untried" / "experiment.yaml"
    statement.write_text(statement.read_text().replace("multiple_of: 1", "multiple_of: 8"))
    for word in ("again: baseline", "compute_curve"):  # what would find the runs of the other one
        statement.write_text("".join(x for x in statement.read_text().splitlines(True) if word not in x))
    shutil.copytree(lab, lab.parent / "wrong")
    (lab.parent / "wrong" / "experiment.yaml").write_text("hypothesis: the moon\narms: {}\n")
    found = {entry.name: entry for entry in list_experiments(Path("experiments"), Store())}
    assert found["wrong"].state == "cannot be read"
    assert "no `baseline`" in found["wrong"].error
    assert found["wrong"].hypothesis == "the moon"
    assert found["gate"].arms[0].startswith("gated_1: ")
    assert found["gate"].seconds is not None
    assert found["untried"].arms[0].endswith("no seed is finished yet")


def test_a_clone_reads_the_report(lab: Path) -> None:
    findings = read_findings(load_experiment(lab), Store())
    (lab / "report.json").write_text(report_json(findings, None))
    (here,) = list_experiments(Path("experiments"), Store())
    shutil.rmtree("runs")
    shutil.rmtree("data")
    (there,) = list_experiments(Path("experiments"), Store())
    assert there.arms == here.arms
    assert there.state.endswith("by its report")


def test_runs(lab: Path) -> None:
    (run,) = Path("runs").glob("gate-gated_1-*-seed2")
    (run / "facts.json").write_text('{"schema": 0}')
    found = {entry.name: entry for entry in list_runs(Store())}
    assert "of schema 0" in found[run.name].state
    assert sum(entry.state == "finished" for entry in found.values()) == len(found) - 1
    assert all(entry.loss is not None for entry in found.values() if entry.state == "finished")
    (other,) = Path("runs").glob("gate-gated_1-*-seed1")
    write_failure(other, Failure(DIVERGED, "step 3: the loss is nan", step=3))
    sessions = plain_json(other / "env.json")
    for name, more in {
        "soup-00000000": {"soup": {"runs": [{}, {}]}},
        "in-00000000": {"imported": {"from": "a/b"}},
    }.items():
        shutil.copytree(other, Path("runs") / name)
        (Path("runs") / name / "failed.json").unlink()
        (Path("runs") / name / "env.json").write_text(json.dumps([{**sessions[-1], **more}]))
    found = {entry.name: entry for entry in list_runs(Store())}
    assert found[other.name].state == "diverged: step 3: the loss is nan"
    assert found["soup-00000000"].state.startswith("a soup of 2 runs")
    assert found["in-00000000"].state.startswith("imported from a/b")
    assert "gate-gated_1" in gptlab("list", "--runs", cwd=Path.cwd()).stdout
    assert (
        "nowhere is not a folder of experiments (nothing is there)"
        in gptlab("list", "nowhere", cwd=Path.cwd(), check=False).stderr
    )
