"""Is `gptlab plan` right? Three configs are planned on this machine, trained, and held against what was predicted.

    python benchmarks/planning.py --input 'gutenberg/train-*.parquet' --validation 'gutenberg/validation-*.parquet'

Prints predicted ÷ actual of the training time, of the whole run's time and of its peak memory. Each run is given as
many tokens as take about `--seconds`; the plan is made before it, by `gptlab plan` with its own default probe.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from gptlab.planning.formatting import format_bytes, format_seconds
from gptlab.planning.records import PredictionRatios, compare_prediction
from gptlab.planning.records import write_prediction as write
from gptlab.planning.subprocesses import plan_in_subprocess
from gptlab.record.facts import read_facts

# Different widths, depths, parts, optimizers, lengths and batches.
CONFIGS = {
    "books-xs": """
model: {dim: 144, layers: 4, heads: 4, block: {attention: {qk_norm: RMSNorm}, mlp: ReLU2}}
optimizer: {use: Muon, lr: 0.02, adamw_lr: 4e-3}
train: {batch_tokens: 4096, sequence_length: 256}
""",
    "deep-llama": """
model: {dim: 96, layers: 8, heads: 6, tied: false, block: {attention: {kv_heads: 2}, mlp: SwiGLU}}
optimizer: {use: AdamW, lr: 1e-3}
train: {batch_tokens: 8192, sequence_length: 128}
""",
    "wide-gpt2": """
model: {dim: 320, layers: 2, heads: 5, norm: LayerNorm, position: Learned, block: {mlp: GELU}}
optimizer: {use: AdamW, lr: 6e-4}
train: {batch_tokens: 4096, sequence_length: 512}
""",
}
REST = """
name: {name}
data: {{path: data/books}}
eval: {{every: 20, tokens: 32768}}
"""
FIRST_GUESS = "train.tokens=400_000"  # a length by which the length of the run is found


def main() -> None:
    """Prepare, plan, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="training text, as `gptlab data prepare` takes it")
    parser.add_argument("--validation", required=True, help="validation text")
    parser.add_argument("--seconds", type=float, default=90, help="length of each run")
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(options.input, options.validation, folder)
        found = [measure(name, folder, options.seconds) for name in CONFIGS]
    print("| config | run | training | whole run | peak memory |\n|---|---|---|---|---|")
    for row, comparison in found:
        print(
            f"| {row['name']} | {format_seconds(row['seconds'])}, {format_bytes(row['peak_memory'])} | "
            f"{comparison.training_seconds:.2f} | {comparison.seconds:.2f} | {comparison.peak_memory:.2f} |"
        )
    if options.out is not None:
        machine = {"cpu": found[0][0]["hardware"], "platform": platform.platform()}
        rows = [row | {"predicted_over_actual": vars(comparison)} for row, comparison in found]
        options.out.write_text(json.dumps({**machine, "runs": rows}, indent=1) + "\n", encoding="utf-8")


def prepare(text: str, validation: str, folder: Path) -> None:
    """A tokenizer of 4,096 and a data set, in `folder`."""
    gptlab("tokenizer", "train", "--input", text, "--vocab-size", "4096", "--name", "books4k", folder=folder)
    inputs = ["--input", text, "--validation", validation, "--tokenizer", "books4k"]
    gptlab("data", "prepare", *inputs, "--out", "data/books", folder=folder)


def measure(name: str, folder: Path, seconds: float) -> tuple[dict[str, object], PredictionRatios]:
    """Plan a config, train it, and compare."""
    config = folder / f"{name}.yaml"
    config.write_text(CONFIGS[name] + REST.format(name=name), encoding="utf-8")
    short = plan_in_subprocess(config, [FIRST_GUESS], ["--probe-seconds", "5"], cwd=folder)
    assert short.training_seconds is not None
    steps = max(20, round(seconds / short.training_seconds * short.steps))
    length = f"train.tokens={steps * short.tokens // short.steps}"
    plan = plan_in_subprocess(config, [length], cwd=folder)
    gptlab("train", str(config), "--set", length, folder=folder)
    (run,) = (folder / "runs").glob(f"{name}-*")
    prediction = plan.prediction()
    assert prediction is not None
    write(run, prediction)
    facts = read_facts(run)
    row = {"name": name, "steps": facts.steps, "parameters": facts.parameters, "hardware": facts.hardware}
    row |= {"seconds": facts.wall_seconds, "training_seconds": facts.seconds, "peak_memory": facts.peak_memory_bytes}
    return row, compare_prediction(run)


def gptlab(*arguments: str, folder: Path) -> None:
    """Run a command, quietly."""
    subprocess.run([sys.executable, "-m", "gptlab", *arguments], cwd=folder, check=True, capture_output=True)


if __name__ == "__main__":
    main()
