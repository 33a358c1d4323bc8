"""Where a command needs a folder of a kind and is given something else, it says what is there, and what is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import TINY, gptlab, make_data

RUN, DATA, EXPERIMENT = "a run folder", "a data set", "an experiment's folder"
TOKENIZER, HUGGINGFACE = "a tokenizer of gptlab", "a Hugging Face folder"

NEEDS_A_FOLDER = {
    "sample {}": RUN,
    "eval {}": RUN,
    "export {} --out out": RUN,
    "compare {} run": RUN,
    "soup run {} --out both": RUN,
    "train config.yaml --set model.init_from={}": RUN,
    "data info {}": DATA,
    "data verify {}": DATA,
    "eval run --data {}": DATA,
    "train config.yaml --set data.path={}": DATA,
    "tokenizer show {} text": TOKENIZER,
    "data prepare --input text --tokenizer {} --out out": TOKENIZER,
    "run {}": EXPERIMENT,
    "report {}": EXPERIMENT,
    "paper {}": EXPERIMENT,
    "ladder config.yaml --sizes 16x1 --tokens 1k --arms {}": EXPERIMENT,
    "import {} --name in": HUGGINGFACE,
}
HOLDS = {
    RUN: "config.yaml",
    DATA: "dataset.json",
    TOKENIZER: "meta.json",
    EXPERIMENT: "experiment.yaml",
    HUGGINGFACE: "config.json",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    make_data(folder)
    (folder / "config.yaml").write_text(TINY.replace("5120", "256") + f"data: {{path: {folder}/data}}\n")
    gptlab("train", "config.yaml", "--out", "run", cwd=folder)
    (folder / "a-file").write_text("hello")
    (folder / "a-folder").mkdir()
    return folder


def refused(place: Path, command: str) -> str:
    """The one line of a refusal that left nothing behind."""
    before = sorted(place.rglob("*"))
    done = gptlab(*command.split(), cwd=place, check=False)
    assert done.returncode == 2
    assert sorted(place.rglob("*")) == before
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("command", NEEDS_A_FOLDER)
def test_a_file_where_a_folder_is_needed(place: Path, command: str) -> None:
    kind = NEEDS_A_FOLDER[command]
    wanted = f"a-file is not {kind} (it is a file, and one is a folder that holds {HOLDS[kind]})"
    assert wanted in refused(place, command.format("./a-file")).replace("./", "")


@pytest.mark.parametrize("command", NEEDS_A_FOLDER)
def test_another_folder_and_none(place: Path, command: str) -> None:
    kind = NEEDS_A_FOLDER[command]
    if kind not in (DATA, HUGGINGFACE):  # which have words of their own for a folder: what else could be in it
        assert f"a-folder is not {kind} (it holds no {HOLDS[kind]})" in refused(place, command.format("a-folder"))
    said = refused(place, command.format("./no/where"))
    of_the_hub = command == "eval {}"  # which takes models of the hub too, and they are called so
    assert ("no folder no/where" if of_the_hub else f"no/where is not {kind} (nothing is there)") in said


@pytest.mark.parametrize("command", ["sample {}", "eval {}"])
def test_a_file_of_such_a_folder(place: Path, command: str) -> None:
    assert "(it is a file; run, in which it is, is one)" in refused(place, command.format("run/model.safetensors"))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("list a-file", "a-file is not a folder of experiments (it is a file)"),
        ("eval run --tasks hellaswag --task-data a-file", "a-file is not a folder of questions (it is a file)"),
        ("train config.yaml --set data.path=a-folder", "a-folder: neither dataset.json nor *train*.bin"),
        ("train run/model.safetensors", "run/model.safetensors is no YAML file: "),
        ("train a-folder", "a-folder is a folder; name a YAML file, or a run folder"),
        ("new idea --baseline a-folder", "no config at a-folder to compare with (it is a folder)"),
        ("new component mlp idea --base a-folder", "no config at a-folder to make a diff against (it is a folder)"),
        ("lr-find config.yaml --out a-folder", "--out a-folder: this is a folder; name a file"),
    ],
)
def test_the_reverse_and_others(place: Path, command: str, words: str) -> None:
    assert words in refused(place, command)
