"""How long a person waits before anything happens: `gptlab --help`, and the first step of a cold training run.

python benchmarks/startup.py [--repeats 10]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from turns import spread

ROOT = Path(__file__).resolve().parents[1]


def help_time() -> float:
    """Seconds of `gptlab --help`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "gptlab", "--help"], check=True, capture_output=True)
    return time.perf_counter() - began


def first_step(folder: Path, number: int) -> float:
    """Seconds from typing `gptlab train` to the first row of metrics.jsonl, compile off."""
    settings = ["data.path=data/stdlib", f"name=cold{number}", "system.compile=false", "eval.every=0"]
    command = [sys.executable, "-m", "gptlab", "train", "demo"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, *(p for s in settings for p in ("--set", s))], cwd=folder, stderr=subprocess.DEVNULL
    )
    try:
        while not any(log.stat().st_size for log in folder.glob(f"runs/cold{number}-*/metrics.jsonl")):
            if process.poll() is not None:
                sys.exit("the training run ended before its first step")
            time.sleep(0.005)
        return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    print(f"gptlab --help: {spread([help_time() for _ in range(options.repeats)])} s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for arguments in (
            ["tokenizer", "train", "--input", "stdlib", "--vocab-size", "4096", "--name", "stdlib4k"],
            ["data", "prepare", "stdlib", "--tokenizer", "stdlib4k"],
        ):
            subprocess.run([sys.executable, "-m", "gptlab", *arguments], cwd=folder, check=True, capture_output=True)
        times = [first_step(folder, number) for number in range(max(3, options.repeats // 2))]
        print(f"first training step from a cold start: {spread(times)} s")


if __name__ == "__main__":
    main()
