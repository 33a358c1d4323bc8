"""Peak memory and time of head and loss at GPT-2's vocabulary: whole logits, gptlab's chunks, and torch's own chunks.

    python benchmarks/loss.py [--turns 5] [--threads 2] [--rows 8] [--length 1024] [--vocab 50304] [--dim 768]

Each way runs forward and backward in a process of its own, in float32 on the CPU, taking turns. Memory is the peak of
the process less what it held before the first step; the logits alone are rows · length · vocab · 4 bytes. Prints
medians (range), and the ratio of time to whole logits, turn by turn.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable

from turns import ratio, serve, spread, take_turns

WAYS = ("whole", "chunks of 512", "chunks auto", "torch chunks")


def worker(way: str, rows: int, length: int, vocab: int, dim: int, threads: int) -> None:
    """Say ready, then answer each line on stdin with the milliseconds and the peak bytes of a step."""
    import torch
    import torch.nn.functional as F

    from gptlab.config import config_from
    from gptlab.hardware.allocator import keep_freed_memory
    from gptlab.loss import CrossEntropy, TokenBatch
    from gptlab.model import build_model

    torch.set_num_threads(threads)
    keep_freed_memory()
    values = {"model": {"dim": dim, "layers": 1, "heads": 1}, "train": {"sequence_length": length}}
    model = build_model(config_from({**values, "train": {"sequence_length": length, "batch_tokens": length}}), vocab)
    hidden = torch.randn(rows, length, dim, requires_grad=True)
    targets = torch.randint(vocab, (rows, length))
    batch = TokenBatch(targets, targets, torch.zeros_like(targets))
    chunk = {"whole": None, "chunks of 512": 512, "chunks auto": "auto"}.get(way)
    ours = CrossEntropy(chunk=chunk)

    class Given(torch.nn.Module):
        """A model whose hidden states are already there, so that head and loss alone are measured."""

        ahead, head, logits, vocab_size = (), model.head, model.logits, vocab

        def forward(self, *_: object) -> torch.Tensor:
            return hidden

    def torchs() -> torch.Tensor:
        return F.linear_cross_entropy(
            hidden.flatten(0, 1),
            model.head.weight,
            targets.flatten(),
            reduction="sum",
            options=torch.nn.LinearCrossEntropyOptions(),
        )

    step: Callable[[], torch.Tensor] = torchs if way == "torch chunks" else lambda: ours(Given(), batch).sum
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def work(_: str) -> dict[str, float]:
        began = time.perf_counter()
        loss = step()
        loss.backward()
        elapsed = (time.perf_counter() - began) * 1000
        hidden.grad = model.head.weight.grad = None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        return {"ms": elapsed, "peak": peak, "loss": loss.item() / targets.numel()}

    serve({"ready": way}, work)


def main() -> None:
    """Parse, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("turns", 5), ("threads", 2), ("rows", 8), ("length", 1024), ("vocab", 50304), ("dim", 768)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--worker", choices=WAYS)
    options = parser.parse_args()
    sizes = (options.rows, options.length, options.vocab, options.dim, options.threads)
    if options.worker:
        worker(options.worker, *sizes)
        return
    flags = [
        part
        for name in ("rows", "length", "vocab", "dim", "threads")
        for part in (f"--{name}", str(getattr(options, name)))
    ]
    commands = {way: [sys.executable, __file__, "--worker", way, *flags] for way in WAYS}
    answers = {way: found[2:] for way, found in take_turns(commands, options.turns + 1, "step", None).items()}
    whole = [answer["ms"] for answer in answers["whole"]]
    print(f"logits alone: {options.rows * options.length * options.vocab * 4 / 2**30:.2f} GiB")
    print("| way | peak GiB | ms | time / whole | loss |\n|---|---|---|---|---|")
    for way, found in answers.items():
        ms = [answer["ms"] for answer in found]
        peak = max(answer["peak"] for answer in found) / 2**30
        print(f"| {way} | {peak:.2f} | {spread(ms)} | {ratio(ms, whole)} | {found[-1]['loss']:.4f} |")


if __name__ == "__main__":
    main()
