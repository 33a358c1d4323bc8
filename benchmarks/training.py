"""Training speed on this CPU against transformers and litgpt, taking turns:

    python benchmarks/training.py [--turns 5] [--steps 2] [--threads 2]

GPT-2's architecture, 6 layers × 384, 6 heads, V 50257, T 256, batch 16, AdamW (the same rates and decay for all), tied
head, no dropout; forward, backward, clip, step. Each contender runs as its users run it: gptlab with its own
loss and allocator setting, transformers with its logits into cross-entropy, litgpt with its chunked cross-entropy.
litgpt has no learned positions: it runs without any, which is a little less work.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import resource
import sys
import time
from typing import Any

from turns import ratio, serve, spread, take_turns

CONTENDERS = ("gptlab", "transformers", "litgpt")
DTYPES = ("float32", "bfloat16")
D, L, H, V, T, B = 384, 6, 6, 50257, 256, 16


def build(library: str) -> tuple[Any, Any, Any]:
    """(model, loss of (inputs, targets), optimizer)."""
    import torch
    import torch.nn.functional as F

    if library == "gptlab":
        from gptlab.hardware.allocator import keep_freed_memory
        from gptlab.interop.gpt2 import gpt2_config
        from gptlab.loss import CrossEntropy, TokenBatch
        from gptlab.model import build_model
        from gptlab.optim import AdamW

        keep_freed_memory()
        model = build_model(gpt2_config(dim=D, layers=L, heads=H, context_length=T), V)
        loss = CrossEntropy()

        def own_loss(inputs: Any, targets: Any) -> Any:
            return loss(model, TokenBatch(inputs, targets, torch.zeros_like(inputs))).sum / targets.numel()

        return model, own_loss, AdamW(model.named_parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    if library == "transformers":
        import transformers

        sizes = {"n_embd": D, "n_layer": L, "n_head": H, "n_positions": T, "vocab_size": V, "use_cache": False}
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **off))

        def loss_of(inputs: Any, targets: Any) -> Any:
            return F.cross_entropy(model(inputs).logits.float().view(-1, V), targets.view(-1))
    else:
        import litgpt
        from litgpt.utils import chunked_cross_entropy

        config = litgpt.Config(
            name="gpt2-like",
            block_size=T,
            vocab_size=V,
            padded_vocab_size=V,
            n_layer=L,
            n_head=H,
            n_embd=D,
            rotary_percentage=0.0,
            parallel_residual=False,
            bias=True,
            lm_head_bias=False,
            norm_class_name="LayerNorm",
            mlp_class_name="GptNeoxMLP",
            gelu_approximate="tanh",
        )
        model = litgpt.GPT(config)
        model.lm_head.weight = model.transformer.wte.weight

        def loss_of(inputs: Any, targets: Any) -> Any:
            return chunked_cross_entropy(model(inputs), targets)

    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    return model, loss_of, torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)


def worker(library: str, dtype: str, threads: int) -> None:
    """Build one contender and serve turns of N steps."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ids = torch.randint(V, (B, T + 1))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    model, loss_of, optimizer = build(library)
    model.train()

    def step() -> float:
        cast = torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
        with cast:
            loss = loss_of(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    def turn(request: str) -> dict[str, Any]:
        began = time.perf_counter()
        for _ in range(int(request)):
            step()
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if platform.system() == "Linux" else 1e9)
        return {"tokens_per_s": int(request) * B * T / seconds, "peak_gb": peak}

    first = step()
    for _ in range(2):
        step()
    serve({"loss": first, "parameters": sum(p.numel() for p in model.parameters())}, turn)


def main() -> None:
    """Parse, run the turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker, options.threads)
        return
    # Three at a time, so that all of them fit in memory together.
    groups = [[f"{library} {dtype}" for library in CONTENDERS] for dtype in DTYPES]
    groups.append(["gptlab bfloat16", "gptlab float32", "transformers float32"])
    for group in groups:
        measure(group, options)


def measure(group: list[str], options: argparse.Namespace) -> None:
    """Let the contenders of a group take turns; print a row for each, compared with the group's first."""
    command = [sys.executable, __file__, "--threads", str(options.threads), "--worker"]
    answers = take_turns({name: [*command, *name.split()] for name in group}, options.turns, str(options.steps))
    speeds = {name: [answer["tokens_per_s"] for answer in found[1:]] for name, found in answers.items() if found}
    first = speeds[group[0]]
    print(f"| | tokens/s | peak memory | {group[0]} / this |\n|---|---|---|---|")
    for name, found in speeds.items():
        compared = "" if name == group[0] else ratio(first, found)
        print(f"| {name} | {spread(found)} | {answers[name][-1]['peak_gb']:.1f} GB | {compared} |")
    print(flush=True)


if __name__ == "__main__":
    main()
