"""Nobody waits without a sign: what takes long shows that it goes on, in a terminal and elsewhere."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import TINY, make_data

from gptlab import console
from gptlab.cli import main


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, two runs, an experiment of them, and questions."""
    from gptlab.config import load_config
    from gptlab.training.loop import train

    folder = tmp_path_factory.mktemp("signs")
    make_data(folder / "made")
    tiny = TINY.replace("heads: 2}", "heads: 2, block: {mlp: SwiGLU}}")  # a Llama, which can be exported
    (folder / "tiny.yaml").write_text(f"name: tiny\ndata: {{path: {folder}/made/data}}\n{tiny}")
    (folder / "idea.py").write_text(
        "from gptlab.model.norm import RMSNorm\n\n\nclass MyNorm(RMSNorm):\n    slot = 'norm'\n"
    )
    question = {
        "ind": 0,
        "activity_label": "Cats",
        "ctx": "the cat",
        "endings": ["sat", "slept", "and", "then"],
        "label": 1,
    }
    (folder / "hellaswag_val.jsonl").write_text(json.dumps(question) + "\n")
    (folder / "experiments" / "idea").mkdir(parents=True)
    (folder / "experiments" / "idea" / "experiment.yaml").write_text(
        "hypothesis: it helps\nbaseline: ../../tiny.yaml\nseeds: 3\ndecision: {smallest_effect: 0.01}\n"
        "arms: {slower: {optimizer: {lr: 5e-4}}}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for seed in (1, 2):
            train(load_config("tiny.yaml", ["train.tokens=512", f"seed={seed}"]), folder=f"runs/run{seed}")
    return folder


Call = Callable[..., tuple[str, str]]


@pytest.fixture
def call(workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """`call("check", …)` → standard output and error of a command in which every wait counts as a long one."""

    def run(*arguments: str) -> tuple[str, str]:
        monkeypatch.chdir(workplace)
        for name in ("SIGN_SECONDS", "LINE_SECONDS"):
            monkeypatch.setattr(console, name, 0.0)
        monkeypatch.setattr(sys, "argv", ["gptlab", *arguments])
        forget()
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        assert ended.value.code in (0, None), captured.err
        return captured.out, captured.err

    yield run
    forget()


def forget() -> None:
    """Consoles look at what standard output and error are when they are first asked for."""
    console.console.cache_clear()
    console.output.cache_clear()


STARTING = ["opening the data", "building the model", "finding how many sequences fit"]
WAITS: dict[str, tuple[list[str], list[str]]] = {
    "check": (["check", "idea.py:MyNorm", "--only", "causal"], ["check builds: 0 of 2 contracts", "check causal"]),
    "plan": (["plan", "tiny.yaml", "--probe-seconds", "0"], ["tiny: real steps", "tiny: counting bytes"]),
    "train": (
        ["train", "tiny.yaml", "--set", "train.tokens=256", "--set", "name=other"],
        [
            *STARTING,
            "the first step",
            "saving a checkpoint",
            "validation: ",
            "writing the weights",
            "drawing the curve",
        ],
    ),
    "train, compiled": (
        ["train", "tiny.yaml", "--set", "train.tokens=256", "--set", "name=compiled", "--set", "system.compile=true"],
        ["compiling the model, before the first step"],
    ),
    "resume": (["train", "runs/run1", "--resume"], ["loading step"]),
    "eval": (
        ["eval", "runs/run1", "--tasks", "loss,hellaswag", "--task-data", "."],
        ["loading runs/run1", "run1: loss: ", "run1: hellaswag: encoding", "run1: hellaswag: 0 of 4 answers"],
    ),
    "soup": (
        ["soup", "runs/run1", "runs/run2", "--out", "both"],
        ["reading weights", "run2: loss", "averaging", "writing"],
    ),
    "mup": (
        ["mup", "check", "tiny.yaml", "--set", "model.mup={dim: 16}", "--widths", "16", "--steps", "1", "--seeds", "1"],
        ["standard, width 16", "mup, width 16", "drawing"],
    ),
    "trace": (["trace", "tiny.yaml"], ["building the model"]),
    "sample": (["sample", "runs/run1", "the", "a", "--max-new-tokens", "2"], ["loading", "sampling: 1 of 2 tokens"]),
    "export": (["export", "runs/run1", "--out", "exported"], ["loading", "writing exported"]),
    "import": (["import", "exported", "--name", "back"], ["importing exported"]),
    "tokenizer train": (
        ["tokenizer", "train", "--input", "made/text", "--vocab-size", "260", "--name", "small"],
        ["reading", "merging: "],
    ),
    "tokenizer import": (["tokenizer", "import", "exported", "--name", "in"], ["importing exported"]),
    "prepare": (
        ["data", "prepare", "--input", "made/text", "--tokenizer", "byte", "--out", "again", "--workers", "1"],
        ["tokenizing"],
    ),
    "verify": (["data", "verify", "made/data"], ["verifying"]),
    "lr-find": (["lr-find", "tiny.yaml", "--steps", "10"], [" of 10 steps", "lr-find"]),
    "compare": (
        ["compare", "runs/run1", "runs/run2", "--top-k", "1", "--out", "compared"],
        ["reading", "top-k accuracy", "drawing"],
    ),
    "list": (["list"], ["reading experiments"]),
    "list --runs": (["list", "--runs"], ["reading runs"]),
    "run": (
        ["run", "experiments/idea", "--dry-run", "--no-probe"],
        ["building the model of each arm", "reading the runs"],
    ),
    "report": (["report", "experiments/idea"], ["reading the runs", "writing the report", "drawing"]),
}


SLOW = ["train, compiled", "lr-find"]


@pytest.mark.parametrize("command", [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in WAITS])
def test_what_may_take_long_says_so_and_results_stay_clean(command: str, call: Call, workplace: Path) -> None:
    arguments, signs = WAITS[command]
    if "import" in command and not (workplace / "exported").exists():
        call(*WAITS["export"][0])
    out, err = call(*arguments)
    for sign in signs:
        assert sign in err
        assert sign not in out


def test_a_short_job_says_nothing_and_a_long_one_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    monkeypatch.setattr(console, "_said_at", 0.0)
    forget()
    with console.progress(unit="windows") as bar:
        task = bar.add_task("validation", total=4)
        bar.advance(task)
        now += 9.9
        bar.advance(task)
        assert capfd.readouterr().err == ""
        now += 0.2
        bar.advance(task)
        now += 9.0
        bar.update(task, description="validation still")
        with console.waiting("something within"):
            now += 3.0
            bar.advance(task)  # what is being waited for is what is within
        assert capfd.readouterr().err == "validation: 3 of 4 windows (75%), 10 s\n"
    with console.waiting("something after"):
        now += 3.0
    assert capfd.readouterr().err == ""  # a line was said a moment ago
    forget()


@contextlib.contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, *, sign_seconds: float) -> Iterator[list[str]]:
    """Standard error is a terminal, and standard output is not; what was shown is in the list afterwards."""
    master, slave = os.openpty()
    shown: list[str] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while content := os.read(master, 4096):
                shown.append(content.decode(errors="replace"))

    reader = threading.Thread(target=read)
    reader.start()
    with open(slave, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setenv("TERM", "xterm")
        patch.setattr(console, "SIGN_SECONDS", sign_seconds)
        forget()
        yield shown
    forget()
    reader.join()
    os.close(master)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such terminals")
class TestTerminal:
    """In a terminal."""

    def test_it_shows_bars_also_within_bars_and_no_results(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with terminal(monkeypatch, sign_seconds=0.0) as shown, console.progress(unit="steps") as bar:
            bar.add_task("training", total=2)
            with console.waiting("saving a checkpoint"):
                print("a result")
            assert list(console.track([1, 2], "validation", total=2, unit="windows")) == [1, 2]
        for sign in ("training", "saving a checkpoint", "validation", "0/2"):
            assert sign in "".join(shown)
        assert "a result" not in "".join(shown)
        assert capsys.readouterr().out == "a result\n"

    def test_it_shows_nothing_of_a_short_job(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with terminal(monkeypatch, sign_seconds=1000.0) as shown:
            assert list(console.track([1, 2], "validation", total=2, unit="windows")) == [1, 2]
        assert "validation" not in "".join(shown)

    @pytest.mark.parametrize("silent", [True, False])
    def test_a_command_that_says_nothing_yet_says_that_it_starts(
        self, silent: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with terminal(monkeypatch, sign_seconds=0.0 if silent else 1000.0) as shown, console.starting("gptlab train"):
            if not silent:
                console.say("no experiments")
            assert console._start is not None
            console._start.join()  # over, or called off
        assert ("gptlab train: starting" in "".join(shown)) == silent

    def test_below_a_cell_it_is_one_line_written_anew(self) -> None:
        """What `!` of a notebook begins has a terminal that knows carriage returns and no way up."""
        script = (
            "import time\nfrom gptlab import console\nconsole.SIGN_SECONDS = 0.0\n"
            "with console.progress(unit='steps') as bar:\n    task = bar.add_task('training', total=3)\n"
            "    for _ in range(3):\n        time.sleep(0.6)\n        bar.advance(task)\n"
            "        with console.waiting('saving'):\n            console.say('saved')\n"
        )
        master, slave = os.openpty()
        environment = {**os.environ, "JPY_PARENT_PID": "1", "FORCE_COLOR": "1"}
        subprocess.run([sys.executable, "-c", script], stderr=slave, env=environment, check=True)
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):
            while content := os.read(master, 4096):
                shown += content
        os.close(master)
        text = shown.decode()
        assert "\x1b" not in text
        assert "training: 1 of 3 steps (33%)" in text
        lines = [line.split("\r") for line in text.replace("\r\n", "\n").split("\n")]
        assert [line[-1] for line in lines] == ["saved", "saved", "saved", ""]
        for line in lines:  # each piece covers the one before it
            assert all(len(after) >= len(before.rstrip()) for before, after in itertools.pairwise(line[:-1]))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "Place.TERMINAL"),
        ({"JPY_PARENT_PID": "1"}, "Place.CELL"),
        ({"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, "Place.CELL"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such terminals")
def test_where_one_speaks(environment: dict[str, str], expected: str) -> None:
    clean = {k: v for k, v in os.environ.items() if k not in ("JPY_PARENT_PID", "MPLBACKEND")} | environment
    command = [sys.executable, "-c", "from gptlab.console import place; print(place())"]
    master, slave = os.openpty()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=slave, env=clean, text=True, check=True)
    assert done.stdout.strip() == expected
    os.close(slave), os.close(master)
    piped = {**clean, "FORCE_COLOR": "1"}  # of a kernel as well: colours are one thing, a line that moves another
    done = subprocess.run(command, capture_output=True, env=piped, text=True, check=True)
    assert done.stdout.strip() == "Place.PLAIN"


def test_nobody_answers_below_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptlab.cli import confirm
    from gptlab.errors import GptlabError

    monkeypatch.setattr(confirm, "place", lambda: console.Place.CELL)
    with pytest.raises(GptlabError, match="add --yes"):
        confirm.ask_before_training()
