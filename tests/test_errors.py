"""An error names an option in the words of whoever reads it: a flag at the command line, an argument in Python."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import TINY, gptlab, make_data

import gptlab as package
from gptlab.errors import GptlabError, option, speaking_of_options

PACKAGE = Path(package.__file__).parent
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if not {"cli", "templates"} & set(file.parts)]
FLAG = re.compile(r"--[a-z{][a-z}-]*")
COMMAND = re.compile(r"gptlab [a-z-]+.*")  # a whole command is one for everybody
STYLE = "lab/report/page.py"  # CSS has names that look like flags


def flags_in_messages(source: str) -> Iterator[str]:
    """Flags in texts that people are shown: not in docstrings, commands to be typed, and arguments of processes."""
    tree = ast.parse(source)
    silent = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    silent |= {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if node in silent or not isinstance(node, ast.JoinedStr | ast.Constant):
            continue
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
        if not FLAG.match(text) or " " in text:
            yield from FLAG.findall(COMMAND.sub("", text))


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(PACKAGE)) for file in FILES])
def test_no_message_outside_the_command_line_names_a_flag(file: Path) -> None:
    if file.relative_to(PACKAGE).as_posix() != STYLE:
        assert list(flags_in_messages(file.read_text("utf-8"))) == []


def test_a_flag_would_be_noticed() -> None:
    source = (
        "def f():\n    '''--doc'''\n    run(['--argument'])\n    raise E(f'{x}: --resume, or `gptlab train --resume`')"
    )
    assert list(flags_in_messages(source)) == ["--resume"]


def test_options_in_both_worlds() -> None:
    given = [("shard_size", 100), ("force", True), ("limit",), ("data", "FOLDER"), ("errors", "replace"), ("input",)]
    given += [("data", Path("a/b")), ("set", "train.tokens=2M"), ("vocab_size", 300)]
    assert [option(*each) for each in given] == [
        "shard_size=100",
        "force=True",
        "limit",
        "data=FOLDER",
        "errors='replace'",
        "inputs",
        "data='a/b'",
        "overrides=['train.tokens=2M']",
        "vocab_sizes=[300]",
    ]
    with speaking_of_options():
        assert [option(*each) for each in given] == [
            "--shard-size 100",
            "--force",
            "--limit",
            "--data FOLDER",
            "--errors replace",
            "--input",
            "--data a/b",
            "--set train.tokens=2M",
            "--vocab-size 300",
        ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("errors")
    make_data(folder)
    (folder / "config.yaml").write_text(TINY.replace("5120", "256") + f"data: {{path: {folder}/data}}\n")
    gptlab("train", "config.yaml", "--out", "runs/one", cwd=folder)
    (folder / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    return folder


def train_again() -> None:
    package.train(package.load_config("config.yaml"), folder="runs/one")


def prepare(**options: object) -> None:
    from gptlab.data import prepare

    prepare(["validation.txt"], tokenizer="byte", workers=1, **{"out": Path("other"), **options})  # type: ignore[arg-type]


def evaluate(**options: object) -> None:
    from gptlab.evals.benchmark import Options
    from gptlab.evals.benchmark import evaluate as run_benchmark

    run_benchmark(package.load("runs/one"), "loss", Options(**options))  # type: ignore[arg-type]


TWICE: dict[str, tuple[Callable[[], object], str, list[str], str]] = {
    "train": (
        train_again,
        "add resume=True to continue it, or name another folder",
        ["train", "config.yaml", "--out", "runs/one"],
        "add --resume to continue it, or name another --out",
    ),
    "load_config": (
        lambda: package.load_config("config.yaml", ["train.tokns=2M"]),
        "overrides=['train.tokns=2M']: ",
        ["config", "show", "config.yaml", "--set", "train.tokns=2M"],
        "--set train.tokns=2M: ",
    ),
    "prepare over something": (
        lambda: prepare(out=Path("data")),
        "replace it with force=True",
        ["data", "prepare", "--input", "validation.txt", "--tokenizer", "byte", "--out", "data"],
        "replace it with --force",
    ),
    "prepare in a worker": (
        lambda: prepare(validation=["latin.txt"]),
        "with errors='replace'",
        [
            "data",
            "prepare",
            "--input",
            "validation.txt",
            "--validation",
            "latin.txt",
            "--tokenizer",
            "byte",
            "--out",
            "other",
            "--workers",
            "1",
        ],
        "with --errors replace",
    ),
    "evaluate": (
        lambda: evaluate(sequence_length=1000),
        "sequence_length=1000: ",
        ["eval", "runs/one", "--sequence-length", "1000"],
        "--sequence-length 1000: ",
    ),
}


@pytest.mark.parametrize("case", TWICE)
def test_errors_in_both_worlds(case: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call, in_python, arguments, at_command_line = TWICE[case]
    monkeypatch.chdir(place)
    with pytest.raises(GptlabError) as error:
        call()
    assert in_python in str(error.value)
    assert not FLAG.search(COMMAND.sub("", str(error.value)))
    done = gptlab(*arguments, cwd=place, check=False)
    assert done.returncode == 2
    assert at_command_line in done.stderr
