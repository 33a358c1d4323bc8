"""Peak memory of training with and without checkpoints, at 135M parameters: what a save costs beyond a step.

    python benchmarks/saving.py [--turns 3] [--threads 2] [--layers 38] [--dim 576] [--steps 4]

Each turn trains the same model by `gptlab.train` in processes of their own, in float32 on the CPU, with AdamW and one
sequence of 256 tokens a step (the smaller a step, the more a save stands out): with gptlab's writer, and with that of
torch.distributed.checkpoint in its place. A process notes its peak when the first save begins, which is what training
alone needs, when the second has ended, and when the finished run is loaded. Prints them, their ratios, and what
weights, gradients and two moments take by themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from turns import ratio, spread

WRITERS = ("gptlab", "torch's writer")


def worker(writer: str, layers: int, dim: int, steps: int, threads: int) -> None:
    """Train and save in the current folder, and say what the peaks were."""
    import torch

    from gptlab import train
    from gptlab.config import config_from
    from gptlab.hardware.memory import peak_memory
    from gptlab.systems import checkpoint
    from gptlab.training import loop

    cpu, peaks, save = torch.device("cpu"), list[int](), loop.save

    def watched(job: Any) -> None:
        peaks.append(peak_memory(cpu))
        save(job)
        peaks.append(peak_memory(cpu))

    loop.save = watched
    if writer != "gptlab":
        checkpoint._write_tensors = _write_as_torch_does
    attention = {"use": "Attention", "kv_heads": 3}
    run = train(
        config_from(
            {
                "name": "saving",
                "data": {"path": "data"},
                "model": {"dim": dim, "layers": layers, "heads": 9, "block": {"attention": attention}},
                "train": {"sequence_length": 256, "batch_tokens": 256, "tokens": 256 * steps, "dtype": "float32"},
                "eval": {"every": 0, "tokens": 256},
                "checkpoint": {"every": steps // 2, "minutes": 0, "keep": 1},
                "system": {"device": "cpu", "threads": threads},
            }
        )
    )
    parameters = sum(p.numel() for p in run.model.parameters())
    print(json.dumps({"alone": peaks[0], "saving": peaks[-1], "whole": peak_memory(cpu), "parameters": parameters}))


def _write_as_torch_does(folder: Path, tensors: dict[str, Any], _: object) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder)))


def main() -> None:
    """Parse, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 38, "dim": 576, "steps": 4, "threads": 2}
    for name, default in ({"turns": 3} | sizes).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--worker", choices=WRITERS)
    options = parser.parse_args()
    given = [getattr(options, name) for name in sizes]
    if options.worker:
        worker(options.worker, *given)
        return
    flags = [part for name, value in zip(sizes, given, strict=True) for part in (f"--{name}", str(value))]
    answers: dict[str, list[dict[str, float]]] = {writer: [] for writer in WRITERS}
    for turn in range(options.turns):
        for writer in WRITERS:
            with tempfile.TemporaryDirectory(prefix="gptlab-saving-") as folder:
                prepare = ("data", "prepare", "--input", "stdlib:train", "--tokenizer", "byte", "--limit-bytes", "2M")
                split = ("--validation-tokens", "10K", "--out", "data")
                subprocess.run(
                    [sys.executable, "-m", "gptlab", *prepare, *split], cwd=folder, check=True, stdout=sys.stderr
                )
                command = [sys.executable, os.path.abspath(__file__), "--worker", writer, *flags]
                done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
                answers[writer].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"turn {turn + 1}, {writer}: {answers[writer][-1]}", file=sys.stderr, flush=True)
    parameters = answers["gptlab"][0]["parameters"]
    print(f"{parameters / 1e6:.1f}M parameters; weights, gradients and moments: {16 * parameters / 2**30:.2f} GiB")
    print("| writer | training alone, GiB | with two saves, GiB | with / alone | whole run / alone |")
    print("|---|---|---|---|---|")
    for writer, found in answers.items():
        alone, saving, whole = ([one[key] / 2**30 for one in found] for key in ("alone", "saving", "whole"))
        print(f"| {writer} | {spread(alone)} | {spread(saving)} | {ratio(saving, alone)} | {ratio(whole, alone)} |")


if __name__ == "__main__":
    main()
