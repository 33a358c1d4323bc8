"""`gptlab new component`: for every kind of slot, what it writes works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import TINY, gptlab, make_data

from gptlab.config import SLOTS, load_config
from gptlab.training.loop import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with data, a config, and one idea of each kind."""
    from gptlab.contracts.scaffold import write_component

    folder = tmp_path_factory.mktemp("new")
    make_data(folder)
    (folder / "tiny.yaml").write_text(f"data: {{path: data}}{TINY}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind in SLOTS:
            write_component(kind, f"my-{kind}", base=Path("tiny.yaml"), folder=Path(f"experiments/my-{kind}"))
    return folder


def test_the_tests_that_it_writes_pass(workplace: Path) -> None:
    """They hold each component to all contracts."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "experiments"],
        cwd=workplace,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{2 * len(SLOTS)} passed" in done.stdout


@pytest.mark.parametrize("kind", SLOTS)
def test_the_diff_trains(workplace: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    run = train(load_config(f"experiments/my-{kind}/my-{kind}.yaml", ["train.tokens=1024"]))
    assert run.finished
    assert [row["step"] for row in run.metrics if "train/loss" in row] == [1, 2, 3, 4]
    (code,) = (run.folder / "code").rglob(f"my_{kind}.py")
    assert code.read_text() == (workplace / f"experiments/my-{kind}/my_{kind}.py").read_text()
    assert isinstance(run.generate("the", max_new_tokens=3), str)  # what bytes a model of four steps draws is chance


def test_it_writes_a_diff_and_nothing_else(workplace: Path) -> None:
    written = workplace / "experiments" / "my-mlp"
    assert sorted(path.name for path in written.iterdir() if path.is_file()) == [
        "my-mlp.yaml",
        "my_mlp.py",
        "test_my_mlp.py",
    ]
    assert yaml.safe_load((written / "my-mlp.yaml").read_text()) == {
        "base": "../../tiny.yaml",
        "model": {"block": {"mlp": "./my_mlp.py:MyMlp"}},
    }


MISTAKES = [
    (("atention", "idea"), "no slot is called 'atention'; did you mean 'attention'?"),
    (("mlp", "2nd"), "'2nd' is no name for an idea"),
    (("mlp", "my-mlp"), "experiments/my-mlp exists already"),
    (("mlp", "other", "--base", "missing.yaml"), "no config at missing.yaml"),
    (("mix", "other", "--base", "empty.yaml"), "names no data to mix"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_are_one_line(workplace: Path, arguments: tuple[str, ...], message: str) -> None:
    (workplace / "empty.yaml").write_text("name: empty\n")
    base = () if "--base" in arguments else ("--base", "tiny.yaml")
    done = gptlab("new", "component", *arguments, *base, cwd=workplace, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert not (workplace / "experiments" / "other").exists()
