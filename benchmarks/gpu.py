"""Everything that needs an NVIDIA GPU, in one command, without network and in under eight minutes:

    python benchmarks/gpu.py --out gpu-results

1. the tests marked `cuda`;
2. GPT-2 124M, forward + backward + clip + AdamW on random tokens: tokens/s, MFU and peak memory of gptlab and of
   transformers, each eager and compiled, and of gptlab compiled as CUDA graphs and with a head in float8. Every variant
   lives in a process of its own; they take turns, so that a change of the card's clock hits all alike, and the table
   gives medians with their range and ratios taken turn by turn;
3. the same model through the real thing: `gptlab tokenizer train`, `data prepare` and `train`, tokens/s from its log.

MFU counts 6 FLOPs a weight and token plus attention (PaLM, appendix B) against the card's dense bfloat16 data sheet.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from turns import serve, take_turns

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
OWN = ("gptlab graphs", "gptlab float8")  # compiled as CUDA graphs, or with a head in float8: against gptlab compiled
VARIANTS = ("gptlab eager", "transformers eager", "gptlab compiled", "transformers compiled", *OWN)
FUSED = "model.block.mlp.approximate=tanh"  # torch's kernel, for speed; the preset writes the formula out
VOCABULARY, ROWS = 50304, 50257  # rows of the embedding, padded as tensor cores like it; ids that occur


def with_source() -> dict[str, str]:
    """The environment, with this checkout's source first on the path: nothing need be installed."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path[1:]])}


def worker(variant: str, rows: int, length: int) -> None:
    """Build one variant, then time a few steps for every line on standard input."""
    import torch

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    library, mode = variant.split()
    ids = torch.randint(ROWS, (rows, length + 1), device="cuda")
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    if library == "gptlab":
        from gptlab.config import load_config
        from gptlab.hardware.compile import try_compile
        from gptlab.loss import CrossEntropy, TokenBatch
        from gptlab.model import build_model
        from gptlab.optim import AdamW

        changes = ["model.pad_vocab=128", FUSED, f"train.sequence_length={length}"]
        if mode == "float8":
            changes.append("model.float8_head=true")
        config = load_config("gpt2", changes)
        model = build_model(config, ROWS, device="cuda")
        loss_of, documents = CrossEntropy(), torch.zeros_like(inputs)
        optimizer: Any = AdamW(model.named_parameters(), lr=1e-4)
        if mode != "eager" and not try_compile(
            model, loss_of, lambda: None, "reduce-overhead" if mode == "graphs" else None
        ):
            sys.exit("torch.compile failed")

        def loss() -> Any:
            return loss_of(model, TokenBatch(inputs, targets, documents)).sum / targets.numel()
    else:
        import transformers

        sizes = {"vocab_size": VOCABULARY, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False, **sizes)).cuda()
        decayed = [p for p in model.parameters() if p.ndim >= 2]
        plain = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)

        def plain_loss() -> Any:
            logits = model(inputs).logits.float()
            return torch.nn.functional.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1))

        loss = torch.compile(plain_loss) if mode == "compiled" else plain_loss
    model.train()

    def step() -> Any:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value

    began = time.perf_counter()
    for _ in range(3):
        first = step()
    torch.cuda.synchronize()
    ready = {"ready_s": time.perf_counter() - began, "loss": first.item()}

    def turn(request: str) -> dict[str, float]:
        torch.cuda.reset_peak_memory_stats()
        steps = int(request)
        step()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(steps):
            step()
        end.record()
        torch.cuda.synchronize()
        seconds = start.elapsed_time(end) / 1000
        peak = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.empty_cache()  # leave the card to the others
        return {"tokens_per_s": steps * rows * length / seconds, "peak_gb": peak}

    serve(ready, turn)


def speed(rows: int, length: int, turns: int, steps: int) -> dict[str, Any]:
    """All variants in turn; medians, ranges, and ratios to `transformers` in the same mode."""
    arguments = ["--rows", str(rows), "--length", str(length)]
    commands = {variant: [sys.executable, __file__, "--worker", variant, *arguments] for variant in VARIANTS}
    results: dict[str, Any] = {}
    for variant, answers in take_turns(commands, turns, str(steps)).items():
        if not answers:
            results[variant] = {"failed": True}
            continue
        measured = answers[1:]
        results[variant] = {
            **answers[0],
            "turns": [answer["tokens_per_s"] for answer in measured],
            "peak_gb": max(answer["peak_gb"] for answer in measured),
        }
    running = [variant for variant in VARIANTS if "turns" in results[variant]]
    for variant in running:
        turned = results[variant]["turns"]
        against = "gptlab compiled" if variant in OWN else variant.replace("gptlab", "transformers")
        other = results.get(against, {}).get("turns")
        results[variant]["tokens_per_s"] = statistics.median(turned)
        if variant.startswith("gptlab") and other:
            ratios = [a / b for a, b in zip(turned, other, strict=True)]
            results[variant]["ratio"] = [statistics.median(ratios), min(ratios), max(ratios)]
    return results


def whole_command(folder: Path, rows: int) -> dict[str, Any]:
    """Tokenizer, data and training by the command line, as a user runs it."""
    environment = with_source()

    def gptlab(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "gptlab", *arguments], cwd=folder, env=environment, check=True)

    gptlab("tokenizer", "train", "--input", "stdlib", "--vocab-size", "50257", "--name", "stdlib50k")
    gptlab("data", "prepare", "stdlib", "--tokenizer", "stdlib50k")
    began = time.perf_counter()
    settings = [
        "data.path=data/stdlib",
        "model.pad_vocab=128",
        FUSED,
        "train.tokens=21M",
        "eval.every=0",
        "eval.tokens=131072",
    ]
    settings += [f"system.micro_batch={rows}", "checkpoint.every=0"]
    gptlab("train", "gpt2", *(part for s in settings for part in ("--set", s)))
    seconds = time.perf_counter() - began
    (log,) = folder.glob("runs/*/metrics.jsonl")
    rows_logged = [json.loads(line) for line in log.read_text().splitlines()]
    speeds = [row["tokens_per_second"] for row in rows_logged if "train/loss" in row]
    losses = [row["train/loss"] for row in rows_logged if "train/loss" in row]
    return {
        "tokens_per_s": statistics.median(speeds[len(speeds) // 2 :]),
        "whole_command_s": seconds,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "steps": len(losses),
    }


def cuda_tests() -> dict[str, Any]:
    """The tests marked cuda; their last line of output."""
    environment = with_source()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "cuda",
        "-q",
        "-p",
        "no:cacheprovider",
        str(ROOT / "tests/test_cuda.py"),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout[-3000:], done.stderr[-1000:], flush=True)
    return {"exit_code": done.returncode, "summary": (done.stdout.strip().splitlines() or ["no output"])[-1]}


def table(report: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        f"{report['gpu']}, torch {report['torch']}, CUDA {report['cuda']}, Python {report['python']}, {report['date']}",
        f"GPT-2 124M, T {report['length']}, {report['rows']} sequences at once, bfloat16 autocast, fused AdamW",
        f"CUDA tests: {report['tests']['summary']}",
        "",
        f"The ratios of {' and '.join(OWN)} are to gptlab compiled.",
        "",
        "| | tokens/s (median, range) | MFU | peak memory | gptlab / transformers |",
        "|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        found = report["speed"][variant]
        if "turns" not in found:
            lines.append(f"| {variant} | failed | | | |")
            continue
        low, high = min(found["turns"]), max(found["turns"])
        mfu = f"{found['mfu']:.1%}" if found.get("mfu") else ""
        ratio = "{:.2f} ({:.2f} to {:.2f})".format(*found["ratio"]) if "ratio" in found else ""
        speed_text = f"{found['tokens_per_s']:,.0f} ({low:,.0f} to {high:,.0f})"
        lines.append(f"| {variant} | {speed_text} | {mfu} | {found['peak_gb']:.1f} GB | {ratio} |")
    if "train" in report:
        found = report["train"]
        mfu = f"{found['mfu']:.1%}" if found.get("mfu") else ""
        lines.append(f"| `gptlab train gpt2` | {found['tokens_per_s']:,.0f} | {mfu} | | |")
    return "\n".join(lines)


def main() -> None:
    """Parse, run, write gpu.json and gpu.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--rows", type=int, default=32, help="sequences at once")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="steps of a turn")
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.rows, options.length)
        return
    import platform
    import tempfile

    import torch

    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs an NVIDIA GPU; torch sees none here")
    from gptlab.config import load_config
    from gptlab.hardware.device import peak_flops
    from gptlab.model import build_model

    flops = build_model(load_config("gpt2"), ROWS, device="meta").flops_per_token(options.length)
    peak = peak_flops(torch.device("cuda", 0))
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "rows": options.rows,
        "length": options.length,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    report["tests"] = cuda_tests()
    report["speed"] = speed(options.rows, options.length, options.turns, options.steps)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(subprocess.CalledProcessError):
        report["train"] = whole_command(Path(folder), options.rows)
    for found in (*report["speed"].values(), report.get("train", {})):
        if peak and "tokens_per_s" in found:
            found["mfu"] = found["tokens_per_s"] * flops / peak
    report["seconds"] = time.perf_counter() - began
    (options.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    text = table(report)
    (options.out / "gpu.md").write_text(text + "\n")
    print(text)
    print(f"whole benchmark: {report['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
