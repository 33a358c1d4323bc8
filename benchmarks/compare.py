"""How long `gptlab compare` takes for 100 runs of 10,000 logged steps: made-up numbers in real files.

python benchmarks/compare.py [--runs 100] [--rows 10000]
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = """name: bench
seed: {{init: {seed}, data: {seed}, dropout: {seed}}}
model: {{dim: 64, layers: 2, heads: 2}}
optimizer: {{use: AdamW, lr: {lr}}}
train: {{tokens: {tokens}, batch_tokens: 1024, sequence_length: 128}}
"""


def make_run(folder: Path, seed: int, rows: int) -> None:
    """A run folder with `rows` logged steps, and a validation every hundredth."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(seed=seed, lr=1e-3 * (1 + seed % 4), tokens=rows * 1024))
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        for step in range(1, rows + 1):
            loss = 3 + 5 / math.sqrt(step) + 0.05 * math.sin(step * (seed + 1.0))
            row = {"step": step, "tokens": step * 1024, "train/loss": loss, "gradient_norm": 0.5 + loss / 10}
            row |= {"lr_multiplier": 1 - step / rows, "tokens_per_second": 51234.5, "seconds": step * 0.02}
            file.write(json.dumps(row) + "\n")
            if step % 100 == 0:
                row = {"step": step, "tokens": step * 1024, "val/loss": loss + 0.1, "val/bits_per_byte": loss / 3}
                file.write(json.dumps(row | {"seconds": step * 0.02}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rows", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / "runs" / f"bench-{number:08x}-seed{number}" for number in range(options.runs)]
        for number, folder in enumerate(folders):
            make_run(folder, number, options.rows)
        for extra in ([], ["--out", f"{place}/out"]):
            begun = time.perf_counter()
            command = [sys.executable, "-m", "gptlab", "compare", *map(str, folders), *extra]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - begun
            what = "with curves and a page" if extra else "table and config differences"
            print(f"{options.runs} runs of {options.rows:,} rows, {what}: {seconds:.2f} s")


if __name__ == "__main__":
    main()
