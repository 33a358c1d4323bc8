"""What the training tests share: a small data set, a small config, and running `gptlab` as a user does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import forkserver
import numpy as np
import pytest

TINY = """
model: {dim: 32, layers: 2, heads: 2}
optimizer: {use: AdamW, lr: 1e-3}
train: {tokens: 5120, batch_tokens: 256, sequence_length: 32, dtype: float32}
eval: {every: 0, tokens: 512}
system: {device: cpu, threads: 1}
"""


GATED = """\
hypothesis: a gate helps
baseline: ../../base.yaml
arms:
  gated: {model: {block: {mlp: {use: SwiGLU, multiple_of: 1}}}}
seeds: SEEDS
metric: loss
match: {tokens: 0%, parameters: 1%, flops: 1%}
decision: {smallest_effect: 0.001, minimum_seeds: MINIMUM}
"""


def gated(seeds: list[int], minimum: int) -> str:
    """The experiment.yaml of a gated MLP against a base.yaml two folders up."""
    return GATED.replace("SEEDS", str(seeds)).replace("MINIMUM", str(minimum))


def python_of(processes: int) -> list[str]:
    """Python, or torchrun where there are several processes: a script or `-m` and a module follow."""
    if processes == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


def snapshot(folder: Path) -> dict[str, int]:
    """Every file below `folder` with its size."""
    return {str(path): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def make_data(folder: Path, *, tokens: int = 6000, seed: int = 0) -> Path:
    """A data set of made-up sentences, prepared by gptlab itself with the byte tokenizer."""
    from gptlab.data import prepare
    from gptlab.tokenizer import load_tokenizer

    words = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "slept", "until", "noon"]
    rng = np.random.default_rng(seed)
    text = folder / "text"
    text.mkdir(parents=True)
    size = 0
    for number in range(1000):
        sentence = " ".join(rng.choice(words, size=rng.integers(20, 60))) + "."
        (text / f"{number:04d}.txt").write_text(sentence)
        size += len(sentence)
        if size > tokens:
            break
    (folder / "validation.txt").write_text(" ".join(rng.choice(words, size=200)))
    prepare(
        inputs=[str(text)],
        validation=[str(folder / "validation.txt")],
        tokenizer=load_tokenizer("byte"),
        out=folder / "data",
        workers=1,
    )
    return folder / "data"


def gptlab(*arguments: str, cwd: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in its own process."""
    done = forkserver.run(list(arguments), cwd, environment)
    if check and done.returncode != 0:
        raise AssertionError(f"gptlab {' '.join(arguments)} exited with {done.returncode}:\n{done.stderr}")
    return done


def gptlab_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command line in this process, to its good end; gives what was said on standard error."""
    from gptlab.cli import main

    monkeypatch.setattr(sys, "argv", ["gptlab", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert not ended.value.code, said
    return said


def make_questions(folder: Path, count: int = 6) -> Path:
    """A folder of made-up questions in HellaSwag's form, short enough for 32 tokens of bytes."""
    words = ["cat", "mat", "noon", "sat", "then", "until", "and", "a"]
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "ind": number,
            "activity_label": "a",
            "ctx": f"the {rng.choice(words)}",
            "endings": [f"{one} {rng.choice(words)}" for one in rng.choice(words, 4, replace=False)],
            "label": int(rng.integers(4)),
        }
        for number in range(count)
    ]
    (folder / "hellaswag_val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def cut_down(source: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """Overrides that cut a config's widths, depth and lengths, and leave all else: parts, rates, decay, schedule."""
    from gptlab.config import load_config
    from gptlab.interop.table import get

    config = load_config(source, list(overrides))
    model = config.model.plain()
    changes = ["model.dim=32", "model.layers=4", "model.heads=4", "model.context_length=32"]
    if get(model, "head_dim") is not None:
        changes.append("model.head_dim=16")
    if (get(model, "block.attention.kv_heads") or 1) > 1:
        changes.append("model.block.attention.kv_heads=2")
    if get(model, "block.mlp.hidden") is not None:
        changes.append("model.block.mlp.hidden=80")
    if get(model, "block.attention.window") is not None:
        changes += [f"model.block.attention.window{part}" for part in ("=16", "_start=4", "_step=4")]
    if get(model, "block.without_attention"):
        changes.append("model.block.without_attention=[3]")
    if model["pad_vocab"] > 1:
        changes.append("model.pad_vocab=8")
    changes += ["train.tokens=768", "train.batch_tokens=256", "train.sequence_length=32"]
    return [*changes, "eval.every=1", "eval.tokens=512", "system.device=cpu", "system.threads=1"]


def plain_json(path: Path) -> Any:
    """A JSON file of ours, as who means an edit leaves it: without its seal."""
    content = json.loads(path.read_text())
    for item in content if isinstance(content, list) else [content]:
        item.pop("seal", None)
    return content


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics, without what depends on the clock."""
    clock = {"seconds", "tokens_per_second"}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def only_run(folder: Path) -> Path:
    """The one run folder in `folder`/runs."""
    (run,) = (path.parent for path in (folder / "runs").glob("[!.]*/config.yaml"))
    return run


def chinchilla_table(path: Path) -> Path:
    """245 runs about Besiroglu et al.'s law, in the form of the table that they published."""
    from gptlab.lab.stats.chinchilla import CHINCHILLA

    rng = np.random.default_rng(1)
    n = np.exp(rng.uniform(np.log(4e7), np.log(1.6e10), 245))
    flops = np.exp(rng.uniform(np.log(6e18), np.log(3e21), 245))
    loss = CHINCHILLA.loss(n, flops / (6 * n)) * np.exp(rng.normal(0, 0.002, 245))
    rows = zip(n, flops, loss, strict=True)
    head = "x,y,color,Model Size,Training FLOP,hex_color,loss\n"
    path.write_text(head + "".join(f"1.5,2.5,#ffffff,{a},{b},#ffffff,{c}\n" for a, b, c in rows))
    return path
