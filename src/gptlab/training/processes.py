"""What the processes of a run agree on before its first step, and what a restart has cost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gptlab.config import RunConfig, hashed_values
from gptlab.errors import BusyError
from gptlab.parallel import World, restarts
from gptlab.planning.formatting import format_seconds
from gptlab.record import runfolder
from gptlab.record.fingerprint import code_fingerprint
from gptlab.systems.metrics import METRICS

_SHARED = ("seed", "eval", "checkpoint", "parallel", "log")
"""Sections outside a run's hash which all processes must have alike: what they compute together, and when."""
_PATIENCE = 30.0  # seconds that a lost process may take to let its run go


def check_alike(config: RunConfig, world: World) -> None:
    """Raise GptlabError, on every process, where the code, torch or the config of one is not that of the main one."""
    if world.size == 1:
        return
    plain = config.plain()
    values = [hashed_values(config, {}), {name: plain[name] for name in _SHARED}]
    world.check_alike(
        {
            "code of gptlab": code_fingerprint(),
            "torch": torch.__version__,
            "config": _digest(values),
        }  # the widest first
    )


def check_data_alike(fingerprints: Mapping[str, str], world: World) -> None:
    """The same of the data, which may be copies on the machines' own disks."""
    world.check_alike({"data set": _digest(dict(fingerprints))})


def _digest(values: Any) -> str:
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def lock_run(folder: Path, stack: contextlib.ExitStack) -> None:
    """Lock a run for training, until `stack` is left. Raises BusyError where another process trains it.

    After a restart that one may be a process that has lost the others and is about to notice: it is waited for.
    """
    until = time.monotonic() + (_PATIENCE if restarts() else 0)
    while True:
        try:
            stack.enter_context(runfolder.training_lock(folder))
            return
        except BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def lost_line(folder: Path, rows: Sequence[Mapping[str, Any]], step: int, seconds: float, size: int) -> str:
    """What is said when a run goes on from a checkpoint and had come further: the steps and the time that this cost.

    `rows`: of metrics.jsonl; `step`, `seconds` of training: of the checkpoint; `size`: processes now. Empty where the
    run stopped in order. To be called before metrics.jsonl is cut back.
    """
    if not rows or rows[-1]["step"] <= step:
        return ""
    last, sessions = rows[-1], runfolder.read_sessions(folder)
    before = sessions[-1].get("world_size", size) if sessions else size
    took = format_seconds(max(0.0, float(last.get("seconds", seconds)) - seconds))
    silence = format_seconds(max(0.0, time.time() - (folder / METRICS).stat().st_mtime))
    processes = f"{size} process{'es' if size > 1 else ''}" + (f" instead of {before}" if before != size else "")
    return (
        f"lost and trained again: steps {step + 1} to {last['step']}, {took} of training; {silence} went by since; "
        f"going on with {processes}"
    )
