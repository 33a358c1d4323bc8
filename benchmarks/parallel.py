"""What a layout costs on this machine's CPUs: its step on two processes over half of one process's step, taking turns.

    python benchmarks/parallel.py [--turns 5] [--steps 12] [--before FOLDER]

A Llama of 6 layers × 256 at V 4096 and T 256, 16 sequences a step, float32, a thread for each process, gloo. 1.00 would
be two processes that lose nothing; where layers or sequences are cut, part of the work is done twice as well.
`--before`: another checkout of gptlab, whose one-process step is measured beside this one's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from turns import ratio, serve, spread, take_turns

ONE = "one process"
LAYOUTS = {
    ONE: [],
    "recompute=selective, one process": ["parallel.recompute=selective"],
    "recompute=full, one process": ["parallel.recompute=full"],
    "copies": ["parallel.shard=1"],
    "shard=all": ["parallel.shard=all"],
    "context=2": ["parallel.context=2"],
    "tensor=2": ["parallel.tensor=2"],
}
BEFORE = "one process, before"
_WARM_UP = 3  # steps that are not counted
CONFIG = """\
name: layouts
base: gptlab:llama-xs
data: {path: data}
model: {dim: 256, layers: 6, pad_vocab: 4096, block: {mlp: {use: SwiGLU, hidden: 704}}}
train: {tokens: TOKENS, batch_tokens: 4096, sequence_length: 256, dtype: float32}
eval: {every: 0, tokens: 4096, at_start: false}
checkpoint: {every: 0}
system: {device: cpu, threads: 1, micro_batch: 4}
"""


def prepare(folder: Path) -> None:
    """Tokens of no text in particular, in a data set as `gptlab data prepare` writes it, and the config."""
    letters = "".join(chr(97 + (i * i + 7 * i) % 26) for i in range(200_000))
    (folder / "text.txt").write_text(letters)
    command = [sys.executable, "-m", "gptlab", "data", "prepare", "--input", "text.txt", "--tokenizer", "byte"]
    subprocess.run(
        [*command, "--out", "data", "--validation-fraction", "0.1"], cwd=folder, check=True, capture_output=True
    )


def worker(name: str, folder: Path, steps: int) -> None:
    """Serve turns: train anew in this layout, and answer with the median of a step's seconds."""
    processes = 1 if "one process" in name else 2
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    settings = LAYOUTS.get(name, [])

    def turn(_: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            command = [*launch, "-m", "gptlab", "train", "config.yaml", "--out", f"{out}/run"]
            for setting in settings:
                command += ["--set", setting]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise SystemExit(f"{name}: {done.stderr[-2000:]}")
            rows = [json.loads(line) for line in (Path(out) / "run/metrics.jsonl").read_text().splitlines()]
        speeds = [row["tokens_per_second"] for row in rows if "train/loss" in row and row["step"] > _WARM_UP]
        return {"seconds": 4096 / statistics.median(speeds)}

    serve({"ready": True}, turn)


def main() -> None:
    """Parse, run the turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--before", type=Path, help="another checkout of gptlab")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.folder, options.steps)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        (folder / "config.yaml").write_text(CONFIG.replace("TOKENS", str(4096 * options.steps)))
        own = [sys.executable, __file__, "--steps", str(options.steps), "--folder", place, "--worker"]
        commands = {name: [*own, name] for name in LAYOUTS}
        if options.before is not None:
            source = (options.before / "src").resolve()
            commands[BEFORE] = ["env", f"PYTHONPATH={source}", *own, BEFORE]
        answers = take_turns(commands, options.turns, "go", {**os.environ, "OMP_NUM_THREADS": "1"})
    seconds = {name: [answer["seconds"] for answer in found[1:]] for name, found in answers.items()}
    halves = [value / 2 for value in seconds[ONE]]
    print("| layout | ms a step | over one process's | over half of it |\n|---|---|---|---|")
    for name, found in seconds.items():
        alone = "one process" in name
        both = "" if alone else ratio(found, halves)
        print(f"| {name} | {spread([1e3 * value for value in found])} | {ratio(found, seconds[ONE])} | {both} |")


if __name__ == "__main__":
    main()
