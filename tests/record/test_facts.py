"""What a finished run leaves for comparisons: facts.json, the lock while it trains, the fingerprint of its code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TINY, gptlab, make_data, only_run, plain_json

import gptlab as package
from gptlab.errors import GptlabError
from gptlab.files import exclusive, is_held
from gptlab.record.facts import read_facts
from gptlab.record.fingerprint import code_fingerprint, executable
from gptlab.record.runfolder import lock_path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("facts")
    make_data(folder)
    (folder / "tiny.yaml").write_text(TINY + "data: {path: data}\n")
    gptlab("train", "tiny.yaml", cwd=folder)
    return only_run(folder)


def test_a_finished_run_says_what_it_was_and_cost(run: Path) -> None:
    facts = read_facts(run)
    loaded = package.load(run, device="cpu")
    assert facts.parameters == sum(p.numel() for p in loaded.model.parameters())
    assert facts.flops == loaded.model.flops_per_token(32) * 5120
    assert (facts.steps, facts.tokens, facts.sessions, facts.world_size) == (20, 5120, 1, 1)
    assert 0 < facts.seconds < facts.wall_seconds
    assert facts.seconds == pytest.approx(loaded.metrics[-1]["seconds"], abs=1e-3)
    assert 5e7 < facts.peak_memory_bytes < 4e9  # torch alone is some hundred megabytes
    assert facts.code == code_fingerprint() == code_fingerprint(run / "code" / "gptlab")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "has no facts.json"),
        ("{", "damaged"),
        ('{"schema": 99}', "of schema 99"),
        ('{"schema": 1, "steps": 3}', "is missing"),
    ],
)
def test_other_facts_are_refused(run: Path, tmp_path: Path, content: str | None, cause: str) -> None:
    if content is not None:
        (tmp_path / "facts.json").write_text(content)
    with pytest.raises(GptlabError, match=cause):
        read_facts(tmp_path)


def test_an_unknown_fact_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text(json.dumps(plain_json(run / "facts.json") | {"mood": "good"}))
    with pytest.raises(GptlabError, match="'mood' is unknown"):
        read_facts(tmp_path)


def test_the_fingerprint_sees_code_and_not_prose(tmp_path: Path) -> None:
    copy = tmp_path / "gptlab"
    shutil.copytree(Path(package.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    mlp = copy / "model" / "mlp.py"
    same = code_fingerprint()
    mlp.write_text("# a remark\n" + mlp.read_text().replace("    ", "    ", 1))
    (copy / "systems" / "plot.py").write_text("")  # a picture changes no loss
    assert code_fingerprint(copy) == same
    mlp.write_text(mlp.read_text() + "\nX = 1\n")
    code_fingerprint.cache_clear()
    assert code_fingerprint(copy) != same


def test_what_runs_of_a_source() -> None:
    assert executable('"""Doc."""\n\n\ndef f(x):  # why\n    """Doc."""\n    return x\n') == executable(
        "def f(x): return x"
    )
    assert executable("def f():\n    '''Doc.'''") == executable("def f():\n    pass")
    assert executable("x = 1") != executable("x = 2")


def test_a_run_is_trained_by_one_process_at_a_time(run: Path) -> None:
    holder = (
        "import sys, time; from pathlib import Path; from gptlab.record.runfolder import training_lock\n"
        f"with training_lock(Path({str(run)!r})):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert is_held(lock_path(run))
        done = gptlab("train", str(run), "--resume", cwd=run.parents[1], check=False)
        assert done.returncode == 2
        assert "another process is training this run" in done.stderr
        process.kill()  # a lock ends with its process
    assert not is_held(lock_path(run))
    with exclusive(lock_path(run), GptlabError("held")):
        pass
    assert not lock_path(run).exists()
