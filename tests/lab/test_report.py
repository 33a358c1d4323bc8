"""`gptlab report`: what it says is what the runs say, twice the same, and nothing where the runs are damaged."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import plain_json, rows

from gptlab.errors import GptlabError
from gptlab.lab.experiment.spec import load_experiment
from gptlab.lab.experiment.verdict import verdict_line
from gptlab.lab.report.blocks import Bullets, Table
from gptlab.lab.report.content import report_blocks
from gptlab.lab.report.figures import over_seeds
from gptlab.lab.report.findings import first_hash, read_findings
from gptlab.lab.report.markdown import render
from gptlab.lab.report.tables import differences_csv, report_json, runs_csv
from gptlab.lab.report.write import write_report
from gptlab.lab.runs.store import Store
from gptlab.plotting import loss_limits, smooth
from gptlab.record.metrics import read_columns, read_metrics
from gptlab.record.runfolder import DIVERGED, Failure, write_failure


def report(folder: Path) -> str:
    write_report(read_findings(load_experiment(folder), Store()))
    return (folder / "report.md").read_text()


def words(folder: Path) -> str:
    """The report without drawing or writing anything."""
    return render(report_blocks(read_findings(load_experiment(folder), Store()), first_hash(folder)))


def last_loss(run: Path) -> float:
    return float([row["val/loss"] for row in rows(run) if "val/loss" in row][-1])


def test_the_answer_is_on_the_first_screen(lab: Path) -> None:
    text = words(lab)
    evidence = read_findings(load_experiment(lab), Store()).evidence
    start = text[:1200]
    for found in evidence.arms:
        assert verdict_line(evidence, found).split(" ")[1] in start
    assert "Hypothesis: A gate lowers" in start
    assert "100% tiny model\\_" in start, "what Markdown would read is escaped"


def test_numbers_are_those_of_the_logs(lab: Path) -> None:
    findings = read_findings(load_experiment(lab), Store())
    pairs = [row for row in csv.DictReader(io.StringIO(differences_csv(findings))) if row["arm"] == "gated_1"]
    assert [row["seed"] for row in pairs] == ["1", "2", "3"]
    for row in pairs:
        arm, base = (last_loss(Path("runs") / row[key]) for key in ("run", "baseline_run"))
        assert float(row["difference"]) == pytest.approx(arm - base, abs=1e-12)
    (summary,) = (arm for arm in json.loads(report_json(findings, None))["arms"] if arm["name"] == "gated_1")
    assert summary["difference"] == pytest.approx(np.mean([float(row["difference"]) for row in pairs]))
    assert summary["seeds"] == 3
    assert {row["use"] for row in csv.DictReader(io.StringIO(runs_csv(findings)))} == {"comparison", "compute curve"}
    assert "compute" in str(findings.equivalents["gated_1"])


@pytest.mark.slow
def test_every_link_leads_somewhere_and_the_page_needs_nothing(lab: Path) -> None:
    text = report(lab)
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) == 3
    for link in links:
        assert (lab / link).stat().st_size < 80_000
        assert (lab / link).with_suffix(".pdf").is_file()
    first = {path: path.read_bytes() for path in lab.rglob("*") if path.is_file()}
    report(lab)
    assert {path: path.read_bytes() for path in lab.rglob("*") if path.is_file()} == first, "twice the same bytes"
    page = (lab / "report.html").read_text()
    assert not re.findall(r'(?:src|href|srcset)="(?!data:)', page)
    assert "<script" not in page
    assert "prefers-color-scheme: dark" in page


def test_a_changed_statement_is_said(lab: Path) -> None:
    findings = read_findings(load_experiment(lab), Store())
    assert "has changed since the first report" not in render(report_blocks(findings, first_hash(lab)))
    (lab / "report.json").write_text(report_json(findings, None))
    path = lab / "experiment.yaml"
    path.write_text(path.read_text().replace("0.01", "0.02"))
    changed = read_findings(load_experiment(lab), Store())
    assert "has changed since the first report" in render(report_blocks(changed, first_hash(lab)))
    (lab / "report.json").write_text(report_json(changed, first_hash(lab)))
    assert first_hash(lab) == findings.statement_hash, "the second report does not make itself the first"


def test_failed_runs_are_listed(lab: Path) -> None:
    (run,) = Path("runs").glob("gate-gated_1-*-seed3")
    (run / "facts.json").unlink()
    write_failure(run, Failure(DIVERGED, "the loss is nan at step 7", step=7))
    text = words(lab)
    assert "1 of" in text
    assert "the loss is nan at step 7" in text


def test_lost_or_damaged_runs_leave_the_last_report(lab: Path) -> None:
    (lab / "report.md").write_text("the last report")
    (run,) = Path("runs").glob("gate-gated_1-*-seed2")
    log = run / "metrics.jsonl"
    content = log.read_text()
    log.write_text(content.replace('{"step": 2,', "step 2,", 1))
    with pytest.raises(GptlabError, match=r"metrics\.jsonl: it was edited or damaged since the run ended"):
        report(lab)
    log.unlink()
    with pytest.raises(GptlabError, match="'gated_1 seed 2' lost its source"):
        report(lab)
    log.write_text(content)
    facts = plain_json(run / "facts.json")
    (run / "facts.json").write_text(json.dumps({**facts, "schema": 0}))
    with pytest.raises(GptlabError, match="of schema 0, this gptlab reads 1"):
        report(lab)
    assert (lab / "report.md").read_text() == "the last report"


def test_before_the_first_run(lab: Path) -> None:
    shutil.rmtree("runs")
    assert "no seed is finished yet" in words(lab)


def test_columns_are_those_of_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": n, "tokens": 10 * n, **({"val/loss": n / 7} if n % 3 else {})}) for n in range(1, 50)]
    path.write_text("\n".join(lines) + "\n")
    keys = ("tokens", "val/loss", "absent")
    whole = read_columns(path, keys)
    expected = [[row.get(key, np.nan) for row in read_metrics(path)] for key in keys]
    np.testing.assert_array_equal(np.array([whole[key] for key in keys]), np.array(expected, dtype=float))
    path.write_text("\n".join(lines) + "\n" + '{"step": 50, "tok')
    torn = read_columns(path, keys)
    assert len(torn["tokens"]) == 49
    assert "torn" in capsys.readouterr().err
    for wrong in ("nonsense", "[]", '{"tokens": 1}', '{"step": 1} {"step": 2}'):
        path.write_text("\n".join([lines[0], wrong, *lines[1:]]) + "\n")
        with pytest.raises(GptlabError, match=r"metrics\.jsonl:2: not a row"):
            read_columns(path, keys)


def test_markdown_escapes_and_aligns() -> None:
    assert render([Bullets(["a_b | <c>\nd"])]) == "- a\\_b \\| \\<c\\> d\n"
    assert render([Table(("a", "b"), [("x|y", "1")])]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |\n"


def test_curves_over_seeds() -> None:
    x = np.array([0.0, 10.0])
    grid, mean, low, high = over_seeds([(x, x), (x[:2] + 2, x + 4)])
    assert grid[0] == 2
    assert grid[-1] == 10
    np.testing.assert_allclose(mean[0], (2 + 4) / 2)
    assert (low <= mean).all()
    assert (mean <= high).all()
    np.testing.assert_allclose(smooth(np.full(100, 3.0)), 3.0)
    bottom, top = loss_limits([(np.concatenate([np.full(10, 99.0), np.linspace(5, 4, 90)]), np.array([]))])
    assert bottom < 4
    assert top < 6, "the steep beginning does not set the scale"
