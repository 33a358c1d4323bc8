"""The notebooks run top to bottom in a real kernel, at a toy's size, and are committed without their outputs."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers import chinchilla_table
from nbclient import NotebookClient

from gptlab.lab.stats.chinchilla import PUBLISHED

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OPTIONS = (
    "--set model.dim=48 --set model.layers=2 --set train.tokens=16k --set train.batch_tokens=2048 "
    "--set train.sequence_length=128 --set eval.tokens=4k"
)
MOST_LINES = 60  # of text below a cell, once what was written over is gone

SHOWS = {
    "1-quick-start": ["run runs/demo-", "validation  loss", "bits per byte", "def read_file(path):"],
    "2-inside": ["blocks.1.attention.qkv", "tensors of a pass", "tokens against"],
    "3-compare": ["2 runs", "top-5", "model.dim: 32 (1), 64 (2)", "what wide knows better"],
    "4-experiment": ["✓ causal", "relu-cubed  inconclusive", "report.md"],
    "5-scaling-laws": ["through 240 runs", "Besiroglu et al. 2024", "ladder of demo"],
}
"""What stands below the cells in the end."""

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def kernel(
    notebook: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: type[NotebookClient] = NotebookClient
) -> Any:
    """A client that executes a notebook in a kernel of its own, which works in `folder`."""
    for name in ("MPLBACKEND", "GPTLAB_NOTEBOOK_OPTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPTLAB_NOTEBOOK_SMALL", "1")
    monkeypatch.setenv("GPTLAB_NOTEBOOK_OPTIONS", OPTIONS)
    monkeypatch.setenv("PATH", os.defpath)  # of an environment that nobody activated
    monkeypatch.setenv("IPYTHONDIR", str(folder / ".ipython"))  # no history, no settings of whoever tests
    return kind(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})


def text_of(cell: Any) -> str:
    """What a reader sees as text below a cell: carriage returns write over what stands before them."""
    found = ""
    for output in cell.get("outputs", []):
        found += output.text if output.output_type == "stream" else str(output.get("data", {}).get("text/plain", ""))
        found += "" if output.output_type == "stream" else "\n"
    lines = [line.split("\r")[-1] for line in found.replace("\r\n", "\n").split("\n")]
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/stdlib as `gptlab data prepare stdlib` makes it, but of a few files."""
    from gptlab.data import Input, prepare

    folder = tmp_path_factory.mktemp("notebooks")
    text, held_out = (
        Input(f"stdlib:{split}", max_bytes=size) for split, size in (("train", 300_000), ("validation", 20_000))
    )
    prepare([text], folder / "data" / "stdlib", tokenizer="byte", validation=[held_out], workers=1)
    return folder


def test_there_is_a_test_for_each() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(SHOWS)


@every_notebook
def test_it_is_committed_without_outputs(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(content)
    assert set(content["metadata"]) == {"kernelspec", "language_info"}
    for cell in content["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert cell["metadata"] == {}
        assert cell["id"]


@every_notebook
def test_it_runs_in_a_kernel(
    path: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The first one from an empty folder."""
    folder = tmp_path if path.stem.startswith("1-") else prepared
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))  # with what the last one would download
    (tmp_path / "cache").mkdir()
    digest = hashlib.sha256(PUBLISHED.encode()).hexdigest()[:16]
    chinchilla_table(tmp_path / "cache" / f"{digest}-{PUBLISHED.rpartition('/')[2]}")
    done = kernel(nbformat.read(path, 4), folder, monkeypatch).execute()
    shown = [text_of(cell) for cell in done.cells]
    for cell, text in zip(done.cells, shown, strict=True):
        assert not re.search(r"^(error: |Traceback|.*command not found)", text, re.M), cell.source
        assert len(text.splitlines()) <= MOST_LINES, cell.source
        streams = {output.name for output in cell.get("outputs", []) if output.output_type == "stream"}
        assert "stderr" not in streams, cell.source  # a notebook shows it as a mistake
    # A model may say a carriage return, which writes over what it said before.
    said = [output.get("text", "") for cell in done.cells for output in cell.get("outputs", [])]
    for sign in SHOWS[path.stem]:
        assert sign in "\n".join([*shown, *said])
    assert any("image/png" in o.get("data", {}) for cell in done.cells for o in cell.get("outputs", []))


PROGRESS = """
import sys, time
from gptlab import console
console.SIGN_SECONDS = 0.2
with console.progress(unit="windows") as bar:
    task = bar.add_task("reading <b>", total=8)
    for number in range(8):
        time.sleep(0.2)
        bar.advance(task)
        if number % 4 == 3:
            console.say(f"message {number}")
with console.waiting("waiting"):
    time.sleep(1.5)
print(console.place())
"""


class Listener(NotebookClient):
    """Keeps what a kernel says to show."""

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        self.drawn = [*getattr(self, "drawn", [])]
        if msg["msg_type"] in ("display_data", "update_display_data"):
            self.drawn.append(msg["content"]["data"]["text/html"])
        return super().process_message(msg, cell, cell_index)


def test_progress_in_a_kernel_is_one_bar_and_messages_are_plain_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = "with console.waiting('another'):\n    time.sleep(1.5)"
    cells = [nbformat.v4.new_code_cell(source) for source in (PROGRESS, again)]
    client = kernel(nbformat.v4.new_notebook(cells=cells), tmp_path, monkeypatch, Listener)
    first, second = (cell.outputs for cell in client.execute().cells)
    for outputs in (first, second):  # what remains of a bar is an empty place, one a cell
        assert [output.data["text/html"] for output in outputs if output.output_type == "display_data"] == [""]
    said = [(output.name, output.text) for output in first if output.output_type == "stream"]
    assert {name for name, _ in said} == {"stdout"}
    assert "".join(text for _, text in said) == "message 3\nmessage 7\nPlace.KERNEL\n"
    drawn = "\n".join(client.drawn)
    for sign in ("reading &lt;b&gt;: ", 'max="8"', "s left", "waiting: ", "another: "):
        assert sign in drawn
    assert len(client.drawn) <= 20  # in three seconds
