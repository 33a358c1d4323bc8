"""Small data sets, written byte by byte as the formats say rather than with the code under test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import forkserver
import numpy as np
import pytest


def llm_c_bytes(ids: Sequence[int], magic: int = 20240520, version: int = 1, dtype: str = "<u2") -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(ids)
    return header.tobytes() + np.asarray(ids, dtype=dtype).tobytes()


WriteShards = Callable[..., Path]


@pytest.fixture
def write_shards(tmp_path: Path) -> WriteShards:
    """Write id lists as modded-nanogpt names them; gives the folder."""

    def write(*shards: Sequence[int], name: str = "set", split: str = "train") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for number, ids in enumerate(shards, 1):
            (folder / f"some_{split}_{number:06d}.bin").write_bytes(llm_c_bytes(ids))
        return folder

    return write


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def gptlab(tmp_path: Path) -> Run:
    """The command line, as a user starts it, in an empty folder and far from any network."""

    def run(*arguments: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        cache = {"GPTLAB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
        return forkserver.run(list(map(str, arguments)), tmp_path, {**cache, **(environment or {})})

    return run


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail as a user's mistake does: exit code 2, one line. Gives the line.

    In this process, through the same entry point: there are many mistakes to make.
    """
    from gptlab.cli import main

    def run(*arguments: str | Path) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["gptlab", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        lines = capsys.readouterr().err.strip().splitlines()
        assert ended.value.code == 2, lines
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return run
