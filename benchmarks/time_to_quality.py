"""Time to quality: TinyShakespeare by characters on this CPU, the whole command from cold start to finished run:

    python benchmarks/time_to_quality.py --text input.txt [--seeds 3]

The last tenth of the text is for validation; the loss is that of the *whole* validation split, every character
predicted once. Preparing the data is timed apart: it happens once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from turns import spread

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Parse, train once a seed, print time and loss of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="input.txt of char-rnn, 1.1 MB")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--config", default="shakespeare-char")
    parser.add_argument("--set", action="append", default=[], help="overrides for the config")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def gptlab(*arguments: str) -> float:
            began = time.perf_counter()
            command = [sys.executable, "-m", "gptlab", *arguments]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            return time.perf_counter() - began

        prepared = gptlab("data", "prepare", "shakespeare-char", "--input", str(options.text.resolve()))
        print(f"prepare: {prepared:.1f} s")
        seconds, losses = [], []
        for seed in range(1, options.seeds + 1):
            overrides = [f"name=run{seed}", f"seed={seed}", *options.set]
            took = gptlab("train", str(options.config.resolve()), *(p for o in overrides for p in ("--set", o)))
            (log,) = folder.glob(f"runs/run{seed}-*/metrics.jsonl")
            rows = [json.loads(line) for line in log.read_text().splitlines()]
            loss = next(row["val/loss"] for row in reversed(rows) if "val/loss" in row)
            seconds.append(took)
            losses.append(loss)
            print(
                f"seed {seed}: validation loss {loss:.4f} after {rows[-1]['tokens']:,} tokens, {took:.1f} s", flush=True
            )
        print(f"loss {spread(losses)}; whole command {spread(seconds)} s")


if __name__ == "__main__":
    main()
