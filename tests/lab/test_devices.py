"""Where runs go: every GPU of the machine, or the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gptlab.lab.runs.execution import Device, find_devices


def test_visible_gpus_are_taken_one_run_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [device.environment for device in find_devices()] == [
        {"CUDA_VISIBLE_DEVICES": "2"},
        {"CUDA_VISIBLE_DEVICES": "5"},
    ]
    assert find_devices(jobs=1) == [Device("2")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden
    assert find_devices() == [Device(None)]
    assert find_devices(jobs=2) == [Device(None)] * 2


@pytest.mark.skipif(os.name == "nt", reason="a script on PATH needs a POSIX shell")
def test_the_driver_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")  # what it prints for these arguments on two cards
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert find_devices() == [Device("0"), Device("1")]
    driver.write_text("#!/bin/sh\nexit 9\n")  # a driver without a card
    assert find_devices() == [Device(None)]
