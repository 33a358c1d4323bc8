"""The share of a training step that is spent waiting for its batch, on this CPU, two shapes taking turns:

    python benchmarks/loader.py --data FOLDER --tokenizer GPT2_FOLDER [--turns 5] [--steps 4] [--threads 2]

FOLDER holds `gutenberg/train-*.parquet`, GPT2_FOLDER `encoder.json` and `vocab.bpe`. The shapes are `books-xs` (4
layers × 144, V 8192) and GPT-2's architecture with 6 layers × 384 (V 50257, T 256, batch 16). Steps are those of
`gptlab train`, by `training.loop.step`. Waiting is all that a worker in the background could take over: reading the
windows of a step from the memory-mapped shards, numbering documents, checking ids, and making tensors of them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from turns import serve, spread, take_turns

SHAPES = {
    "books-xs": ["data.path={data}/small"],
    "6x384": [
        "data.path={data}/gpt2",
        "model.dim=384",
        "model.layers=6",
        "model.heads=6",
        "train.batch_tokens=4096",
        "train.sequence_length=256",
        "train.tokens=10M",
    ],
}
CONFIGS = {"books-xs": "books-xs", "6x384": "gpt2"}


def prepare_data(folder: Path, text: str, gpt2: str, limit: int) -> None:
    """Both data sets, of the first `limit` bytes of the text."""
    from gptlab.data import iter_documents, prepare
    from gptlab.tokenizer import import_tokenizer, train_bpe

    documents = (document.text for document in iter_documents([text], limit_bytes=limit))
    (small,) = train_bpe(documents, [8192], name="small")
    for name, tokenizer in (("small", small), ("gpt2", import_tokenizer(gpt2, name="gpt2"))):
        prepare([text], folder / name, tokenizer=tokenizer, validation_tokens=70_000, limit_bytes=limit, workers=1)


class Timed:
    """A stream of batches that counts the seconds that are spent in it, tensors included."""

    def __init__(self, job: Any) -> None:
        self.job, self.stream, self.seconds = job, job.stream, 0.0

    def batch(self, *arguments: int) -> Any:
        """The batch of a step."""
        from gptlab.data import micro_batches
        from gptlab.training.accumulation import to_device

        began = time.perf_counter()
        batch = self.stream.batch(*arguments)
        for piece in micro_batches(batch, self.job.micro_batch):
            to_device(piece, self.job.device)
        self.seconds += time.perf_counter() - began
        return batch


def worker(shape: str, data: str, threads: int) -> None:
    """Build the job of one shape, and serve turns of N steps."""
    import torch

    from gptlab.config import load_config
    from gptlab.hardware.allocator import keep_freed_memory
    from gptlab.parallel import World
    from gptlab.training.loop import step
    from gptlab.training.setup import build_job

    keep_freed_memory()
    overrides = [each.format(data=data) for each in SHAPES[shape]]
    config = load_config(CONFIGS[shape], [*overrides, f"system.threads={threads}", "system.compile=false"])
    job = build_job(config, World(), torch.device("cpu"), folder=Path(data) / f"run-{shape}")
    timed: Any = Timed(job)
    job.stream = timed

    def turn(request: str) -> dict[str, Any]:
        timed.seconds, began = 0.0, time.perf_counter()
        for _ in range(int(request)):
            step(job)
            job.step += 1
        seconds = time.perf_counter() - began
        return {"step": seconds / int(request), "waiting": timed.seconds / int(request)}

    turn("2")
    serve({}, turn)


def main() -> None:
    """Parse, make the data, run the turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tokenizer", help="a folder with encoder.json and vocab.bpe")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit-bytes", type=int, default=20_000_000)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker, options.threads)
        return
    if options.data is None or options.tokenizer is None:
        parser.error("give --data and --tokenizer")
    with tempfile.TemporaryDirectory() as place:
        text = str(options.data / "gutenberg" / "train-*.parquet")
        prepare_data(Path(place), text, options.tokenizer, options.limit_bytes)
        common = [sys.executable, __file__, "--threads", str(options.threads), "--worker"]
        commands = {shape: [*common, shape, place] for shape in SHAPES}
        answers = take_turns(commands, options.turns, str(options.steps))
    for shape, found in answers.items():
        measured = found[1:]
        milliseconds = [1e3 * each["waiting"] for each in measured]
        shares = [100 * each["waiting"] / each["step"] for each in measured]
        steps = statistics.median(1e3 * each["step"] for each in measured)
        print(f"{shape}: {steps:,.0f} ms a step, waiting {spread(milliseconds)} ms: {spread(shares)}% of a step")


if __name__ == "__main__":
    main()
