"""The command line where terminal, disk or environment are not what one hopes for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TINY, gptlab, make_data


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    make_data(folder)
    (folder / "config.yaml").write_text(TINY.replace("5120", "512") + "data: {path: data}\n")
    return folder


def test_a_backend_of_a_notebook_does_not_matter(place: Path) -> None:
    """Jupyter sets MPLBACKEND for `!gptlab train`; it names a module that need not be here."""
    backend = "module://matplotlib_inline.backend_that_is_not_here"
    done = gptlab("train", "config.yaml", "--out", "runs/notebook", cwd=place, MPLBACKEND=backend)
    assert done.returncode == 0
    for name in ("facts.json", "loss.png"):
        assert (place / "runs/notebook" / name).is_file()


def test_a_terminal_without_letters_shows_their_numbers(place: Path) -> None:
    done = gptlab("data", "info", "data", cwd=place, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_standard_output(place: Path) -> None:
    command = [sys.executable, "-m", "gptlab", "config", "show", "config.yaml"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=place, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() == 0 or os.name == "nt", reason="root may write everywhere")
@pytest.mark.parametrize("command", [["train", "config.yaml", "--out", "shut/run"], ["new", "component", "shut/part"]])
def test_a_folder_that_cannot_be_written(place: Path, command: list[str]) -> None:
    (place / "shut").mkdir(mode=0o500, exist_ok=True)
    done = gptlab(*command, cwd=place, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "Permission denied" in done.stderr


def test_a_closed_standard_input_that_is_to_be_read(place: Path) -> None:
    command = f"exec {sys.executable} -m gptlab tokenizer show byte - <&-"
    done = subprocess.run(["sh", "-c", command], cwd=place, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "standard input is closed" in done.stderr


def test_a_model_that_was_edited_in_a_run_folder_is_told(place: Path) -> None:
    """Its weights fit all the same, and another number would come out without a word."""
    gptlab("train", "config.yaml", "--out", "runs/edited", cwd=place)
    assert "careful" not in gptlab("eval", "runs/edited", cwd=place).stderr
    config = place / "runs/edited/config.yaml"
    config.write_text(config.read_text().replace("theta: 10000", "theta: 77", 1))
    assert "runs/edited/config.yaml was edited" in gptlab("eval", "runs/edited", cwd=place).stderr


def test_where_nobody_answers_the_error_says_how_to_go_on(place: Path) -> None:
    done = gptlab("noise", "config.yaml", "--seeds", "2", "--no-probe", cwd=place, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: nobody answers at standard input; add --yes")
    assert "Traceback" not in done.stderr


def test_text_comes_from_files_and_standard_input_too(place: Path) -> None:
    run = gptlab_run(place)
    (place / "prompt.txt").write_text("the cat\nsat")
    draw = ("--max-new-tokens", "3", "--seed", "1", "--temperature", "0")
    plain = gptlab("sample", run, "the cat\nsat", *draw, cwd=place).stdout
    assert plain.startswith("the cat\nsat")
    assert gptlab("sample", run, "--file", "prompt.txt", *draw, cwd=place).stdout == plain
    piped = subprocess.run(
        [sys.executable, "-m", "gptlab", "sample", run, "-", *draw],
        cwd=place,
        input=b"the cat\nsat",
        capture_output=True,
        check=True,
    )
    assert piped.stdout.decode() == plain
    several = gptlab("sample", run, "the", "--samples", "3", *draw, cwd=place).stdout
    assert several.count("the") >= 3
    told = gptlab("sample", run, "prompt.txt", *draw, cwd=place)
    assert told.stdout.startswith("prompt.txt")
    assert "'prompt.txt' is taken as the text itself; --file prompt.txt reads the file" in told.stderr
    shown = gptlab("tokenizer", "show", "byte", "--file", "prompt.txt", cwd=place)
    assert "11 tokens" in shown.stderr


def gptlab_run(place: Path) -> str:
    """The folder of a run, trained where it is not there yet."""
    if not (found := sorted(place.glob("runs/*"))):
        gptlab("train", "config.yaml", cwd=place)
        found = sorted(place.glob("runs/*"))
    return str(found[0])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["sample", "RUN", "--file", "none.txt"], "--file none.txt cannot be read: No such file or directory"),
        (["sample", "RUN", "--file", "bad.txt"], "bad.txt is not UTF-8: byte 1; convert it first"),
        (["tokenizer", "show", "byte"], "no text to cut; give it, - for standard input, or --file FILE"),
    ],
)
def test_text_that_is_not_there_is_one_line(place: Path, command: list[str], message: str) -> None:
    (place / "bad.txt").write_bytes(b"a\xff")
    words = [gptlab_run(place) if word == "RUN" else word for word in command]
    done = gptlab(*words, cwd=place, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {message}")
