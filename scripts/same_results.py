"""Does this tree compute what another commit computed, bit for bit? For changes that must not change any result.

    python scripts/same_results.py COMMIT [--text FOLDER] [--work FOLDER]

Trains the same things twice, by the package of COMMIT and by the one in this tree, each through its own command line:
books-mini and shakespeare-char with two seeds, the modded preset cut small, a mixture of experts, an experiment, a run
that was extended and one that was killed, stages and a soup. Compared are the names of the run folders (and so the
hashes), every row of metrics.jsonl but its times, the weights, and the verdict. What COMMIT gave is kept in the work
folder and not computed again. Exit code 1 where anything differs.

FOLDER holds `gutenberg/*.parquet` and `tinyshakespeare/input.txt`; by default GPTLAB_TEST_DATA, or ../shared/data.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TIMES = ("seconds", "tokens_per_second")
ONE_THREAD = "system.threads=1"

MODDED = """base: modded.yaml
name: modded-small
data: {path: data/books2k}
model:
  dim: 96
  layers: 8
  heads: 3
  block:
    without_attention: [5]
    attention: {window: 256, window_start: 128}
train: {tokens: 60k, batch_tokens: 2048, sequence_length: 512}
eval: {every: 10, tokens: 32k}
system: {threads: 1}
"""
MOE = """base: books-mini.yaml
name: moe
model: {block: {mlp: MoE}}
train: {tokens: 80k}
"""
STAGES = """base: books-mini.yaml
name: staged
stages:
  - name: pretrain
    train: {tokens: 60k}
  - name: anneal
    train: {tokens: 20k}
    schedule: {use: Linear, warmup: 0.05, final: 0.0}
    seeds: [2, 3]
    soup: uniform
"""
EXPERIMENT = """hypothesis: SwiGLU is not ReLU2.
baseline: ../../configs/books-mini.yaml
common: {train: {tokens: 40k}}
arms:
  swiglu: {model: {block: {mlp: SwiGLU}}}
  again: baseline
seeds: 3
metric: loss
match: {tokens: 0%, flops: 1%, parameters: 1%}
decision: {alpha: 0.05, smallest_effect: 0.02, minimum_seeds: 3}
"""


class Laboratory:
    """A folder in which the package of one tree is used."""

    def __init__(self, tree: Path, folder: Path, text: Path) -> None:
        self.folder, self.text = folder, text
        self.environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_WAIT_POLICY": "passive"}
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ROOT / "src/gptlab/config/presets", folder / "configs")
        for name, content in (("modded-small", MODDED), ("moe", MOE), ("staged", STAGES)):
            (folder / "configs" / f"{name}.yaml").write_text(content)
        (folder / "experiments" / "mini").mkdir(parents=True)
        (folder / "experiments" / "mini" / "experiment.yaml").write_text(EXPERIMENT)

    def gptlab(self, *arguments: str, check: bool = True) -> str:
        """Run a command; what it printed as its result."""
        print("   gptlab", *arguments, flush=True)
        command = [sys.executable, "-m", "gptlab", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        if check and done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        return done.stdout

    def killed(self, *arguments: str) -> None:
        """Run a training, and kill it once it has a checkpoint."""
        print("   gptlab", *arguments, "(killed)", flush=True)
        before = {*self.folder.glob("runs/*/checkpoints/step-*")}
        command = [sys.executable, "-m", "gptlab", *arguments]
        process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and {*self.folder.glob("runs/*/checkpoints/step-*")} <= before:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def prepare(self) -> None:
        """Tokenizer and data sets."""
        books = self.text / "gutenberg"
        train, validation = str(books / "train-00000-*.parquet"), str(books / "validation-*.parquet")
        self.gptlab("tokenizer", "train", "--input", train, "--vocab-size", "2048", "--name", "books2k")
        where = ["--tokenizer", "books2k", "--out", "data/books2k"]
        self.gptlab("data", "prepare", "--input", train, "--validation", validation, *where)
        self.gptlab("data", "prepare", "shakespeare-char", "--input", str(self.text / "tinyshakespeare" / "input.txt"))

    def train(self) -> str:
        """Everything that is compared; the experiment's verdict."""
        for seed in ("1", "2"):
            self.gptlab("train", "configs/books-mini.yaml", "--set", f"seed={seed}")
            self.gptlab("train", "configs/shakespeare-char.yaml", "--set", f"seed={seed}", "--set", ONE_THREAD)
        self.gptlab("train", "configs/modded-small.yaml")
        self.gptlab("train", "configs/moe.yaml")
        short = ["train", "configs/books-mini.yaml", "--set", "train.tokens=40k", "--set", "checkpoint.every=6"]
        self.gptlab(*short, "--set", "name=extended", "--set", "schedule.warmup=0.1")
        folder = str(next(self.folder.glob("runs/extended-*")).relative_to(self.folder))
        self.gptlab("train", folder, "--resume", "--set", "train.tokens=80k")
        resumed = [*short, "--set", "name=killed", "--set", "schedule.decay=0.3"]
        self.killed(*resumed)
        self.gptlab(*resumed, "--resume")
        self.gptlab("train", "configs/staged.yaml")
        runs = [str(path.relative_to(self.folder)) for path in sorted(self.folder.glob("runs/staged-anneal-*-seed*"))]
        self.gptlab("soup", *runs, "--out", "by-hand")
        return self.gptlab("run", "experiments/mini", "--yes", "--no-probe")

    def record(self) -> dict[str, Any]:
        """What the runs left, without its times."""
        self.prepare()
        found: dict[str, Any] = {"verdict": self.train()}
        for run in sorted(path for path in self.folder.glob("runs/*") if path.is_dir()):
            metrics = run / "metrics.jsonl"  # a soup has none
            rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.is_file() else []
            weights = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
            kept = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
            found[run.name] = {"weights": weights, "rows": kept}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--text", type=Path, default=Path(os.environ.get("GPTLAB_TEST_DATA", ROOT / "../shared/data")))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "gptlab-same-results")
    options = parser.parse_args()
    work: Path = options.work.resolve()
    text: Path = options.text.resolve()
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", options.commit], capture_output=True, text=True, check=True)
    name = commit.stdout.strip()[:12]
    kept = work / f"{name}.json"
    if not kept.is_file():
        print(f"{name}:")
        tree = work / f"tree-{name}"
        if not tree.is_dir():
            tree.mkdir(parents=True)
            archive = subprocess.Popen([*git, "archive", name], stdout=subprocess.PIPE)
            subprocess.run(["tar", "-x", "-C", str(tree)], stdin=archive.stdout, check=True)
        kept.write_text(json.dumps(Laboratory(tree, work / "lab-then", text).record(), indent=1))
    print("this tree:")
    there, here = json.loads(kept.read_text()), Laboratory(ROOT, work / "lab-now", text).record()
    (work / "now.json").write_text(json.dumps(here, indent=1))
    different = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    for run in {**there, **here}:
        state = "DIFFERS" if run in different else "same"
        rows = f", {len(here[run]['rows'])} rows" if run in here and run != "verdict" else ""
        print(f"{state}: {run}{rows}")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
