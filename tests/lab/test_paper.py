"""`gptlab paper`: it compiles, and no number outlives its source."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import gptlab

from gptlab.errors import GptlabError
from gptlab.lab.experiment.spec import load_experiment
from gptlab.lab.report.latex import Numbers, Source, escape
from gptlab.lab.report.paper import write_paper
from gptlab.lab.runs.store import Store


def paper(folder: Path) -> Path:
    write_paper(load_experiment(folder), Store())
    return folder / "paper"


@pytest.fixture(scope="module")
def first_paper(lab_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper, written once. Copy it (`written`) before changing it."""
    place = tmp_path_factory.mktemp("paper") / "place"
    shutil.copytree(lab_experiment, place)
    with contextlib.chdir(place):
        return place / paper(Path("experiments/gate"))


@pytest.fixture
def written(first_paper: Path, lab: Path) -> Path:
    shutil.copytree(first_paper, lab / "paper")
    return lab / "paper"


def test_every_number_has_a_source(written: Path) -> None:
    content = json.loads((written / "sources.json").read_text())
    used = {
        name
        for path in written.rglob("*.tex")
        for name in re.findall(r"\\result\{([^}]+)\}", path.read_text())
        if name != "..."
    }
    assert used == set(content["numbers"])
    for number in content["numbers"].values():
        for source in number["sources"]:
            path = Path("runs") / source["run"] / source["file"]
            text = path.read_text()
            assert f'"{source["key"]}"' in text, "the key is in that file"
    defined = set(re.findall(r"csname gptlab@([^\\#]+)\\endcsname\{", (written / "numbers.tex").read_text()))
    assert defined == used


def test_a_deleted_log_is_named_by_its_number(written: Path, lab: Path) -> None:
    before = {path: path.read_bytes() for path in written.rglob("*") if path.is_file()}
    (run,) = Path("runs").glob("gate-gated_1-*-seed2")
    content = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").unlink()
    done = gptlab("paper", str(lab), cwd=Path.cwd(), check=False)
    assert done.returncode == 2
    assert re.fullmatch(
        rf"error: paper: the number 'gated_1 [^']+' lost its source: {run}/metrics.jsonl is gone; [^\n]+\n", done.stderr
    )
    assert {path: path.read_bytes() for path in written.rglob("*") if path.is_file()} == before
    (run / "metrics.jsonl").write_bytes(content.replace(b'"step": 2,', b'"step": 3,'))
    with pytest.raises(GptlabError, match="has changed since"):
        paper(lab)
    shutil.rmtree(run)
    with pytest.raises(GptlabError, match="lost its source"):
        paper(lab)


def test_a_log_that_was_gone_before_the_first_paper(lab: Path) -> None:
    (run,) = Path("runs").glob("gate-gated_1-*-seed2")
    (run / "metrics.jsonl").unlink()
    with pytest.raises(GptlabError, match="'gated_1 seed 2' lost its source"):
        paper(lab)
    assert not (lab / "paper").exists()


def test_what_the_author_wrote_is_kept(written: Path, lab: Path) -> None:
    (written / "paper.tex").write_text("my own words")
    paper(lab)
    assert (written / "paper.tex").read_text() == "my own words"


def test_nothing_to_write_about(lab: Path) -> None:
    shutil.rmtree("runs")
    with pytest.raises(GptlabError, match=r"no seed of .* is finished"):
        paper(lab)
    (lab / "paper").mkdir()
    (lab / "paper" / "sources.json").write_text("{")
    with pytest.raises(GptlabError, match=r"sources\.json: damaged"):
        paper(lab)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("latexmk") is None, reason="latexmk is not installed")
def test_it_compiles(written: Path) -> None:
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "paper"]
    done = subprocess.run(command, cwd=written, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    log = (written / "paper.log").read_text(errors="replace")
    assert "undefined" not in log, "every citation and every number is there"
    assert (written / "paper.pdf").stat().st_size > 50_000


def test_text_is_escaped() -> None:
    assert escape(r"50% of a_b & {c} \d ~ ² ☃") == (
        r"50\% of a\_b \& \{c\} \textbackslash{}d \textasciitilde{} \textsuperscript{2} U+2603"
    )
    numbers = Numbers()
    assert numbers.put("a.x", "a's x", "5%", [Source("r", "f", "k")] * 2) == r"\result{a.x}"
    assert numbers.values["a.x"][2] == [Source("r", "f", "k")]
    assert r"\csname gptlab@a.x\endcsname{5\%}" in numbers.definitions()
