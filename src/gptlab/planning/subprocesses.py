"""Probes and plans by a process of their own, so that the caller does not import torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from gptlab.config import RunConfig, dump_yaml
from gptlab.config.jsonfile import read_json
from gptlab.errors import GptlabError
from gptlab.planning.plan import Plan, Probe


def probe_in_subprocess(config: RunConfig, *, seconds: float = 20.0) -> Probe:
    """Take a few real steps of `config` in a process of its own, for about so many seconds, and tell what they showed.

    Raises GptlabError with the line that the process ends with: data that is missing, a model that does not fit.
    """
    with tempfile.TemporaryDirectory(prefix="gptlab-probe-") as folder:
        source = Path(folder) / "config.yaml"
        source.write_text(dump_yaml(config.plain()), encoding="utf-8")
        command = [sys.executable, "-m", "gptlab.training.probe", folder, str(seconds), str(time.time())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        _require_success(done, "the probe")
        return read_json(Path(folder) / "probe.json", Probe, mend="run the command again")


def plan_in_subprocess(
    config: Path, overrides: Iterable[str] = (), options: Iterable[str] = (), *, cwd: Path | None = None
) -> Plan:
    """`gptlab plan CONFIG --json` with `--set` for each of `overrides` and further `options`, in a process of its own.

    It probes this machine unless `options` say `--gpu`, which takes half a minute: callers keep what comes back.
    Raises GptlabError with the line that it ends with.
    """
    command = [sys.executable, "-m", "gptlab", "plan", str(config), "--json", *options]
    for text in overrides:
        command += ["--set", text]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    _require_success(done, f"gptlab plan {config}")
    return Plan.from_plain(json.loads(done.stdout)["plan"])


def _require_success(done: subprocess.CompletedProcess[str], what: str) -> None:
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        last = said[-1].removeprefix("error: ")
        raise GptlabError(last if done.returncode == 2 else f"{what} failed ({done.returncode}): {last}")
