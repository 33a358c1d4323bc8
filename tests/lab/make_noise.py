"""The noise of real runs: trains one tiny config with 24 seeds and writes their validation losses to noise.json.

    python tests/lab/make_noise.py

The runs differ in initialization and in the order of the data, nothing else. It takes about two minutes on two cores;
the losses depend a little on versions and processor, so the committed file is kept and not made in tests.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import TINY, make_data

import gptlab
from gptlab.config import load_config
from gptlab.console import progress

OUT = Path(__file__).with_name("noise.json")
SEEDS = range(1, 25)


def main() -> None:
    losses = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_data(folder)
        os.chdir(folder)
        Path("tiny.yaml").write_text(f"data: {{path: data}}{TINY}", encoding="utf-8")
        with progress(unit="runs") as bar:
            for seed in bar.track(SEEDS, description="training"):
                run = gptlab.train(load_config("tiny.yaml", [f"seed={seed}"]))
                losses.append([row["val/loss"] for row in run.metrics if "val/loss" in row][-1])
        os.chdir(OUT.parent)
    OUT.write_text(json.dumps({"losses": losses}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
