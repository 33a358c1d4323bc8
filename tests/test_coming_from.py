"""docs/coming-from: every item of the five systems has its line, and every command of ours in them runs.

Models are cut small, and data sets that come over the network are `input.txt` instead; everything else is as written.
"""

from __future__ import annotations

import glob
import re
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from foreign import TEMPLATE, templategpt_clone, templategpt_tensors
from helpers import cut_down, make_data, make_questions

import gptlab
from gptlab.cli import main
from gptlab.config import load_config
from gptlab.data import preset
from gptlab.interop import export_run

PAGES = Path(__file__).resolve().parents[1] / "docs/coming-from"
SYSTEMS = {"gpt-lab": 15, "templategpt": 17, "nanogpt": 9, "microgpt": 11, "hlb-gpt": 7}


class Row(NamedTuple):
    """A line of a table: an item's id (empty where it goes on), our command, and whether it works."""

    item: str
    command: str
    state: str


def rows_of(page: str) -> list[Row]:
    found = []
    for line in (PAGES / f"{page}.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and "---" not in cells[0] and cells[2] != "here":
            command = re.match(r"`gptlab ([^`]*)`", cells[2])
            words = command[1].replace("\\|", "|") if command else ""
            found.append(Row(cells[0], words, re.split(r"[:;,]", cells[3])[0]))
    return found


@pytest.mark.parametrize(("number", "page"), list(enumerate(SYSTEMS, start=1)))
def test_every_item_has_its_line(number: int, page: str) -> None:
    items = [row for row in rows_of(page) if row.item]
    assert [row.item for row in items] == [f"S{number}-{index:02}" for index in range(1, SYSTEMS[page] + 1)]
    assert {row.state for row in items} <= {"works", "partly", "not here"}
    assert all(row.command for row in rows_of(page))


def test_the_first_page_counts_them() -> None:
    text = (PAGES / "index.md").read_text(encoding="utf-8")
    for page in SYSTEMS:
        states = Counter(row.state for row in rows_of(page) if row.item)
        (line,) = (line for line in text.splitlines() if f"({page}.md)" in line)
        assert [int(cell) for cell in re.findall(r"\| (\d+) (?=\|)", line)] == [
            states["works"],
            states["partly"],
            states["not here"],
        ], line


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test_data: Path) -> Path:
    """A folder with what the pages have: `input.txt`, GPT-2's tokenizer, a checkpoint of nanoGPT, a model of
    templateGPT. Data sets of the network are the text of `input.txt`."""
    monkeypatch.chdir(tmp_path)
    text = (test_data / "tinyshakespeare/input.txt").read_text()[:60_000]
    (tmp_path / "input.txt").write_text(text)
    (tmp_path / "books").mkdir()
    for number in range(20):
        (tmp_path / f"books/{number}.txt").write_text(text[3000 * number : 3000 * (number + 1)])
    known = preset.load_preset

    def load_preset(name: str) -> preset.Preset:
        own = {"inputs": ["input.txt"], "separator": "\n\n", "document_start": None, "text_column": "text"}
        held_out = {"validation": None, "validation_tokens": 3000, "validation_fraction": None}
        return known(name).model_copy(update={**own, **held_out})

    monkeypatch.setattr(preset, "load_preset", load_preset)
    run("tokenizer", "import", str(test_data / "gpt2_bpe"), "--name", "gpt2")
    monkeypatch.setenv("GPTLAB_BENCHMARKS", str(make_questions(tmp_path / "questions")))
    for name in ("wiki.test.tokens", "ptb.test.txt"):
        (tmp_path / "questions" / name).write_text(" = A = \n \n the cat sat on N mats \n")
    make_data(tmp_path / "made")
    config = load_config("nanogpt", [*cut_down("nanogpt"), f"data.path={tmp_path / 'made/data'}"])
    export_run(gptlab.train(config, folder=tmp_path / "made/run"), tmp_path / "exported-before", "nanogpt")
    for each in ("ckpt.pt", "tokenizer"):
        (tmp_path / "exported-before" / each).rename(tmp_path / each)
    templategpt_clone(tmp_path, TEMPLATE, templategpt_tensors(TEMPLATE))
    (tmp_path / "trained").symlink_to(tmp_path / "clone/trained")
    return tmp_path


def run(*arguments: str) -> None:
    """`gptlab …` in this process, as a shell would call it."""
    sys.argv[1:] = arguments
    code: object = None
    try:
        main()
    except SystemExit as done:
        code = done.code
    assert not code, f"gptlab {shlex.join(arguments)}: exit code {code}"


def as_a_shell(command: str) -> list[str]:
    """The words of a command, its globs expanded, and a training cut small."""
    words = []
    for word in shlex.split(command):
        there = sorted(glob.glob(word)) if "*" in word and "=" not in word else []
        words += there or [word]
    if words[0] == "train":
        given = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
        asked = {setting.partition("=")[0] for setting in given}
        cuts = (cut for cut in cut_down(words[1], given) if cut.partition("=")[0] not in asked)
        words += [word for cut in cuts for word in ("--set", cut)]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("page", SYSTEMS)
def test_every_command_runs(page: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["gptlab"])
    torch.set_num_threads(1)
    for row in rows_of(page):
        run(*as_a_shell(row.command))
        capsys.readouterr()
