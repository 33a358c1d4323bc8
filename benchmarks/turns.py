"""Contenders that take turns: each in a process of its own, idle while another works.

A shared machine changes its speed from minute to minute. Measured in turn, all contenders meet the same weather, and
the ratio within a turn says more than two medians of different minutes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

Answer = dict[str, Any]


def take_turns(
    commands: dict[str, list[str]], turns: int, request: str, env: dict[str, str] | None = None
) -> dict[str, list[Answer]]:
    """Start every command, wait until each has said a line of JSON (ready), then ask each in turn, `turns` times.

    Returns each one's answers; the first is what it said when ready. One that fails to start has none.
    """
    processes: dict[str, subprocess.Popen[str]] = {}
    answers: dict[str, list[Answer]] = {name: [] for name in commands}
    try:
        for name, command in commands.items():
            processes[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
            )
            _ask(processes[name], None, answers[name])
            print(f"{name}: {'ready' if answers[name] else 'failed to start'}", file=sys.stderr, flush=True)
        for _ in range(turns):
            for name, process in processes.items():
                if answers[name]:
                    _ask(process, request, answers[name])
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return answers


def _ask(process: subprocess.Popen[str], request: str | None, answers: list[Answer]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    if request is not None:
        process.stdin.write(request + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    while line and not line.startswith("{"):  # libraries that greet on standard output
        line = process.stdout.readline()
    if line:
        answers.append(json.loads(line))


def serve(ready: Answer, work: Callable[[str], Answer]) -> None:
    """The worker's side: say `ready`, then answer every line."""
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        print(json.dumps(work(line.strip())), flush=True)


def spread(values: list[float]) -> str:
    """Median (smallest to largest)."""
    return f"{statistics.median(values):,.4g} ({min(values):,.4g} to {max(values):,.4g})"


def ratio(a: list[float], b: list[float]) -> str:
    """a / b turn by turn: median (smallest to largest)."""
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
