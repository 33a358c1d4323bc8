"""What every test may ask for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# One thread a test process: two of them, each with two threads that wait for one another by spinning, take ten times as
# long. Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what tests/slow.txt lists (scripts/slow_tests.py writes it) as slow, beside what says so itself."""
    listed = set((ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").split())
    for item in items:
        if item.nodeid.partition("[")[0].removeprefix("tests/") in listed:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real text and benchmark questions; tests that need it skip where it is absent (CI has it)."""
    folder = Path(os.environ.get("GPTLAB_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set GPTLAB_TEST_DATA to the folder that holds it")
    return folder


@pytest.fixture(autouse=True)
def run_to_start_from(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test of a config or a page that starts from imported weights works where a run of that name is."""
    parameters = request.node.callspec.params.values() if hasattr(request.node, "callspec") else ()
    files = [value for value in parameters if isinstance(value, Path) and value.suffix in (".yaml", ".md")]
    if any("init_from:" in file.read_text(encoding="utf-8") for file in files):
        folder = tmp_path_factory.mktemp("imported")
        _small_run(folder / "runs" / "gpt2-xl-00000000")
        monkeypatch.chdir(folder)


def _small_run(folder: Path) -> None:
    """What a config needs of GPT-2 XL: a run folder of that architecture, only smaller."""
    from gptlab.config import dump_yaml
    from gptlab.interop.gpt2 import gpt2_config
    from gptlab.model import build_model
    from gptlab.run import save_weights

    config = gpt2_config(dim=16, layers=1, heads=2, context_length=1024)
    save_weights(build_model(config, 257), folder / "model.safetensors")
    (folder / "config.yaml").write_text(dump_yaml(config.plain()), encoding="utf-8")


@pytest.fixture
def mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail as a user's mistake does; return its line. Checks that no file came or went."""

    from helpers import snapshot

    from gptlab.cli import main

    def attempt(*arguments: str) -> str:
        before = snapshot(Path.cwd())
        monkeypatch.setattr(sys, "argv", ["gptlab", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main()
        lines = capsys.readouterr().err.strip().splitlines()
        assert exit_info.value.code == 2, lines
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1, lines
        assert lines[-1] == errors[0]
        assert "Traceback" not in "".join(lines)
        assert snapshot(Path.cwd()) == before
        return errors[0]

    return attempt
