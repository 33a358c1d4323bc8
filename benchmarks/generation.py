"""Generation speed on this CPU against transformers, taking turns:

    python benchmarks/generation.py [--batch 1] [--turns 5] [--tokens 200] [--threads 2]

GPT-2's architecture, 6 layers × 384, V 50257, float32, greedy, with cache, after prompts of 16 tokens. The floor is the
time to read all weights once for the tokens of a batch, at the bandwidth of a large copy that is made in every turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

from turns import ratio, serve, spread, take_turns

D, L, H, V, T = 384, 6, 6, 50257, 256
PROMPT = 16
CONTENDERS = ("gptlab", "gptlab compiled", "transformers", "gptlab without cache", "floor")


def transformers_model(prompts: Any) -> Any:
    """Their generation, as a function of the number of tokens."""
    import transformers

    transformers.logging.set_verbosity_error()
    sizes = {"n_embd": D, "n_layer": L, "n_head": H, "n_positions": T, "vocab_size": V}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()

    def generate(count: int) -> None:
        ids = theirs.generate(prompts, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
        assert ids.shape == (len(prompts), PROMPT + count)

    return generate


def gptlab_model(prompts: Any, use_cache: bool, compiled: bool) -> Any:
    """Ours."""
    import torch

    from gptlab.inference.compiled import CompiledSteps
    from gptlab.inference.generate import Sampling, decoding_copy
    from gptlab.inference.generate import generate as own_generate
    from gptlab.interop.gpt2 import gpt2_config
    from gptlab.model import build_model

    cpu = torch.device("cpu")
    model = build_model(gpt2_config(dim=D, layers=L, heads=H, context_length=T), V).eval()
    model = CompiledSteps(model) if compiled else decoding_copy(model, cpu, torch.float32)

    def generate(count: int) -> None:
        sampling = Sampling(max_new_tokens=count, temperature=0, stop_at_end=False)
        rows = own_generate(model, prompts.tolist(), sampling, stop_ids=(), device=cpu, use_cache=use_cache)
        assert {len(row) for row in rows} == {count}

    return generate


def copy_instead() -> Any:
    """Nothing but a copy, whose time is that of reading and writing as many bytes as `count` tokens read."""
    import torch

    source, target = torch.zeros(2**26), torch.empty(2**26)
    weights = 4 * (V * D + T * D + L * 12 * D * D)
    copies = 2 * 4 * 2**26 / weights  # tokens in the time of one copy, which reads and writes

    def read(count: int) -> None:
        for _ in range(max(1, round(count / copies))):
            target.copy_(source)

    return read


def worker(name: str, batch: int, threads: int) -> None:
    """Build one contender and serve turns of N tokens a row."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    prompts = torch.randint(V, (batch, PROMPT))
    if name == "floor":
        generate = copy_instead()
    elif name == "transformers":
        generate = transformers_model(prompts)
    else:
        generate = gptlab_model(prompts, use_cache=name != "gptlab without cache", compiled=name == "gptlab compiled")

    def turn(request: str) -> dict[str, Any]:
        began = time.perf_counter()
        generate(int(request))
        return {"tokens_per_s": batch * int(request) / (time.perf_counter() - began)}

    generate(8)
    serve({"ready": True}, turn)


def main() -> None:
    """Parse, run the turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.batch, options.threads)
        return
    passed = ["--batch", str(options.batch), "--threads", str(options.threads)]
    commands = {name: [sys.executable, __file__, *passed, "--worker", name] for name in CONTENDERS}
    answers = take_turns(commands, options.turns, str(options.tokens))
    speeds = {name: [a["tokens_per_s"] for a in found[1:]] for name, found in answers.items()}
    own = CONTENDERS[:2]
    print(f"| | tokens/s | ms a step | {own[0]} / this | {own[1]} / this |\n|---|---|---|---|---|")
    for name, found in speeds.items():
        ratios = [ratio(speeds[ours], found) if name != ours else "" for ours in own]
        ms = 1e3 * options.batch / statistics.median(found)
        print(f"| {name} | {spread(found)} | {ms:.1f} | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
