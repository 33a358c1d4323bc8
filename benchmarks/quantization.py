"""What weights of fewer bits cost and give, side by side for one trained run, on this CPU:

    python benchmarks/quantization.py RUN [--turns 5] [--tokens 200] [--windows 64] [--threads 1]

Bytes of all weights; bits per byte of the run's validation text, products in float32, so that nothing but the weights
is rounded; tokens a second of greedy generation with cache at batch 1, each contender a process of its own, in turn.
bfloat16 is the model converted as it is, which gptlab does on GPUs alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from turns import ratio, serve, spread, take_turns

CONTENDERS = ("float32", "bfloat16", "int8")


def worker(name: str, options: argparse.Namespace) -> None:
    """Load the run in one precision of weights, measure its loss, and serve turns of N tokens."""
    import torch

    from gptlab.evals.benchmark import Options, evaluate
    from gptlab.inference.generate import Sampling, generate
    from gptlab.run import load

    torch.set_num_threads(options.threads)
    run = load(options.run, device="cpu", dtype="float32", quantize="int8" if name == "int8" else None)
    if name == "bfloat16":
        run.model.to(torch.bfloat16)
        run.generator = run.model
    size = sum(t.numel() * t.element_size() for t in (*run.model.parameters(), *run.model.buffers()))
    if name == "bfloat16":  # rounded weights, products in float32
        run.model.float()
    bits = evaluate(run, "loss", Options(limit=options.windows)).results["bits_per_byte"]
    if name == "bfloat16":
        run.model.to(torch.bfloat16)
    prompt = [run.encode_prompt("It was")]

    def turn(request: str) -> dict[str, Any]:
        sampling = Sampling(max_new_tokens=int(request), temperature=0, stop_at_end=False)
        began = time.perf_counter()
        (made,) = generate(run.generator, prompt, sampling, stop_ids=(), device=run.device)
        return {"tokens_per_s": len(made) / (time.perf_counter() - began)}

    turn("8")
    serve({"bytes": size, "bits_per_byte": bits}, turn)


def main() -> None:
    """Parse, run the turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--windows", type=int, default=64, help="of validation text")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options)
        return
    from importlib.metadata import version

    commands = {name: [sys.executable, __file__, *sys.argv[1:], "--worker", name] for name in CONTENDERS}
    answers = take_turns(commands, options.turns, str(options.tokens))
    speeds = {name: [a["tokens_per_s"] for a in found[1:]] for name, found in answers.items()}
    print(f"torch {version('torch')}, torchao {version('torchao')}, {options.threads} thread(s)")
    print("| weights | MB | bits per byte | tokens/s | this / float32 |\n|---|---|---|---|---|")
    for name, (ready, *_) in answers.items():
        faster = ratio(speeds[name], speeds["float32"]) if name != "float32" else ""
        size, bits = ready["bytes"] / 1e6, ready["bits_per_byte"]
        print(f"| {name} | {size:,.1f} | {bits:.5f} | {spread(speeds[name])} | {faster} |")


if __name__ == "__main__":
    main()
