"""Generation speed on this CPU against transformers, taking turns:

    python benchmarks/generation.py [--turns 5] [--tokens 200] [--threads 2]

GPT-2's architecture, 6 layers × 384, V 50257, float32, batch 1, greedy, with cache, after a prompt of 16 tokens. The
floor is the time to read all weights once a token at the memory bandwidth measured here (a large copy).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

from turns import ratio, serve, spread, take_turns

D, L, H, V, T = 384, 6, 6, 50257, 256
CONTENDERS = ("gptlab", "transformers", "gptlab without cache")


def worker(name: str, threads: int) -> None:
    """Build one contender and serve turns of N tokens."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    prompt = torch.randint(V, (1, 16))
    if name == "transformers":
        import transformers

        transformers.logging.set_verbosity_error()
        sizes = {"n_embd": D, "n_layer": L, "n_head": H, "n_positions": T, "vocab_size": V}
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()

        def generate(count: int) -> int:
            ids = theirs.generate(prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
            return ids.shape[1] - 16
    else:
        from gptlab.inference.generate import Sampling, decoding_copy
        from gptlab.inference.generate import generate as own_generate
        from gptlab.interop.gpt2 import gpt2_config
        from gptlab.model import build_model

        cpu = torch.device("cpu")
        model = build_model(gpt2_config(dim=D, layers=L, heads=H, context_length=T), V).eval()
        model = decoding_copy(model, cpu, torch.float32)

        def generate(count: int) -> int:
            sampling = Sampling(max_new_tokens=count, temperature=0, stop_at_end=False)
            rows = own_generate(
                model,
                prompt.tolist(),
                sampling,
                stop_ids=(),
                device=cpu,
                use_cache=name == "gptlab",
            )
            return len(rows[0])

    def turn(request: str) -> dict[str, Any]:
        began = time.perf_counter()
        made = generate(int(request))
        return {"tokens_per_s": made / (time.perf_counter() - began)}

    generate(8)
    serve({"ready": True}, turn)


def floor(threads: int) -> float:
    """Tokens a second if nothing but the weights' bytes took time."""
    import torch

    torch.set_num_threads(threads)
    source, target = torch.zeros(2**26), torch.empty(2**26)
    target.copy_(source)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - began)
    bandwidth = 2 * 4 * 2**26 / statistics.median(times)
    weights = 4 * (V * D + T * D + L * 12 * D * D)
    return bandwidth / weights


def main() -> None:
    """Parse, run the turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.threads)
        return
    commands = {
        name: [sys.executable, __file__, "--threads", str(options.threads), "--worker", name] for name in CONTENDERS
    }
    answers = take_turns(commands, options.turns, str(options.tokens))
    speeds = {name: [a["tokens_per_s"] for a in found[1:]] for name, found in answers.items()}
    print("| | tokens/s | gptlab / this |\n|---|---|---|")
    for name, found in speeds.items():
        print(f"| {name} | {spread(found)} | {ratio(speeds['gptlab'], found) if name != 'gptlab' else ''} |")
    print(f"floor (weights read once a token): {floor(options.threads):,.0f} tokens/s")


if __name__ == "__main__":
    main()
