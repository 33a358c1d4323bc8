"""Hostile input to every command: exit code 2, one line that says what and how to mend it, nothing left behind.

Each case is a child forked of a process that has imported everything.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import TINY, gptlab, make_data

BIG, LONG = "9" * 400, "x" * 300
OWN = "--judge http://localhost:9/v1 --model m"

SETTINGS = [
    *("model.dim=1e9", "model.dim=0", "model.dim=1e300", "model.dim=[1, 2]", "model.dim=[1,2", f"model.dim={BIG}"),
    *("model.layers=1e9", "model.layers=0", "model.layers=-1", "model.heads=1e9", "model.heads=0", "model.heads=3"),
    *("model.head_dim=0", "model.head_dim=7", "model.context_length=8", "model.context_length=1e15"),
    *("model.dropout=2", "model.block=3", "model=5", "model.block.mlp=nosuch", "model.block.mlp=./no.py:A"),
    *("model.block.mlp=./config.yaml:A", "model.init_from=nowhere", "model.init_from=runs/*"),
    *("model.position={use: RoPE, theta: 0}", "model.position=nosuch"),
    *(f"train.batch_tokens={2**60}", "train.batch_tokens=0", "train.tokens=inf", "train.tokens=nan", "train.tokens=0"),
    *("train.tokens=1e30", "train.sequence_length=1e12", "train.sequence_length=0", "train.gradient_clip=0"),
    *("train.spike=-1", "train.dtype=float8", "eval.tokens=1e30", "eval.tokens=0", "eval.every=-5"),
    *(
        "eval.sequence_length=1000",
        "eval.sequence_length=0",
        f"seed={2**64}",
        "seed=-1",
        "seed=one",
        "seed={init: 1.5}",
    ),
    *("optimizer.lr=0", "optimizer.lr=nan", "optimizer.lr=-1", "optimizer.lr=fast", "optimizer.betas=[1,2,3]"),
    *("optimizer=nosuch", "schedule=nosuch", "loss=nosuch", "system.device=cpu:5", "system.device=tpu"),
    *("system.micro_batch=0", "system.micro_batch=some", "system.threads=0", "system.threads=1e9"),
    *("checkpoint.keep=0", "checkpoint.every=-1", "checkpoint.minutes=-1", "checkpoint.minutes=nan", "log.every=-1"),
    *("name=a/b", "name=..", f"name={LONG}", "name=a\nb", "name=", "name=-x", "name=.x"),
    *("data.path=nowhere", "data.path=config.yaml", "data.path=text", "data.tokenizer=nosuch", "data.epochs=0"),
    *(
        "data.sources={a: data}",
        "data.mix=Weights",
        "a.b.c=1",
        "=",
        "x",
        "model.dim",
        "base=config.yaml",
        "__class__=1",
    ),
]

IDEAS = {
    "exits": "import sys\nsys.exit(0)\n",
    "interrupts": "raise KeyboardInterrupt\n",
    "syntax": "class A(:\n",
    "empty": "",
    "cyclic": "class A(B): pass\nclass B(A): pass\n",
    "deep": "class A0: pass\n"
    + "".join(f"class A{i + 1}(A{i}): pass\n" for i in range(1200))
    + "class A(A1200):\n    slot = 'mlp'\n",
    "nomodule": "class A:\n    slot = 'mlp'\n    def __init__(self, dim): pass\n",
    "private": "class A:\n    def __init__(self, dim, *, _a: int = 2): pass\n",
    "taken": "class A:\n    def __init__(self, dim, *, model_dump: int = 2): pass\n",
    "onetype": "class A:\n    def __init__(self, dim, *, d: dict[str] = None): pass\n",
    "computed": "class A:\n    def __init__(self, dim, *, d: int = 1 + len('a')): pass\n",
    "starred": "class A:\n    def __init__(self, *dims): pass\n",
    "asks": "class A:\n    def __init__(self, dim, moon): pass\n",
    "raises": "class A:\n    def __init__(self, dim): raise ValueError('no')\n",
    "leaves": "import sys\nclass A:\n    def __init__(self, dim): sys.exit(0)\n",
    "forward_leaves": "import sys, torch\nclass A(torch.nn.Module):\n    slot = 'mlp'\n    def __init__(self, dim): "
    "super().__init__()\n    def forward(self, x): sys.exit(0)\n",
    "forward_stops": "import torch\nclass A(torch.nn.Module):\n    slot = 'mlp'\n    def __init__(self, dim): "
    "super().__init__()\n    def forward(self, x): raise KeyboardInterrupt\n",
    "returns": "import torch\nclass A(torch.nn.Module):\n    slot = 'mlp'\n    def __init__(self, dim): "
    "super().__init__()\n    def forward(self, x): return None\n",
}

COMMANDS = [
    "train nowhere.yaml",
    "train runs",
    "train config.yaml --out config.yaml",
    f"train config.yaml --out {LONG}",
    "train config.yaml --out runs/a",
    "train config.yaml --out text",
    "train config.yaml --out text --resume",
    "train config.yaml --out . --resume",
    "train config.yaml --out=",
    "train runs/a --resume --set model.dim=64",
    "train config.yaml --nosuch",
    "train",
    "nosuch",
    f"sample runs/a --seed {2**70}",
    "sample runs/a --temperature 1e-320",
    "sample runs/a --temperature -1",
    "sample runs/a --temperature nan",
    "sample runs/a --top-k 0",
    "sample runs/a --top-k 100000",
    "sample runs/a x --max-new-tokens -1",
    "sample runs/a --repetition-penalty 0",
    "sample runs/a --repetition-penalty nan",
    "sample runs/a --beams 0",
    f"sample runs/a --beams {10**9}",
    "sample runs/a --beams 1000",
    "sample runs/a --beams 4 --temperature 0.5",
    "sample runs/a --beams 4 --top-k 3",
    "sample runs/a --beams 4 --seed 1",
    "sample runs/a --beams 4 --stop x",
    "sample nowhere",
    "sample runs/a --checkpoint ../../x",
    "sample runs/a --device cpu:5",
    "eval runs/a --tasks nosuch",
    "eval runs/a --tasks ,",
    "eval runs/a --limit -1",
    "eval runs/a --data nowhere",
    "eval runs/a --data config.yaml",
    "eval runs/a --sequence-length 0",
    "eval runs/a --sequence-length 100000",
    "eval runs/a --tasks hellaswag --task-data nowhere",
    "eval nowhere",
    "eval runs/a --suite nosuch",
    "eval runs/a --suite small,",
    "eval runs/a --suite=",
    "eval runs/a --resume --data nowhere",
    "eval runs/a --resume --tasks hellaswag --task-data nowhere",
    "eval text",
    "eval config.yaml",
    "eval broken.gguf --tasks loss",
    "eval broken.pt --tasks loss",
    "eval theirs --tasks loss",
    "eval runs/a runs/long",
    "compare runs/a",
    "compare runs/a runs/a",
    "compare runs/a nowhere",
    "compare runs/a runs/b --metric x",
    "compare runs/a runs/b --top-k a",
    "compare runs/a runs/b --top-k 7",
    "compare runs/a runs/b --out config.yaml",
    "compare runs/a runs/b --out=",
    f"compare runs/a runs/b --out {LONG}",
    f"judge nowhere {OWN}",
    f"judge runs {OWN}",
    f"judge runs/a runs/a {OWN}",
    f"judge runs/a runs/b runs/long {OWN}",
    f"judge runs/a runs/b --grade {OWN}",
    "judge runs/a --judge localhost --model m",
    "judge runs/a --judge http://[ --model m",
    "judge runs/a --judge http://example.com/v1 --model m",
    "judge runs/a --judge https://example.com/v1 --model m",
    "judge runs/a --judge https://example.com/v1 --model m --budget 1",
    "judge runs/a --judge https://u:p@example.com/v1 --model m --budget 1",
    f"judge runs/a {OWN} --key-variable NOSUCH",
    f"judge runs/a {OWN} --prompts nosuch",
    f"judge runs/a {OWN} --prompts nowhere.jsonl",
    f"judge runs/a {OWN} --criteria nowhere.txt",
    f"judge runs/a {OWN} --criteria overall",
    f"judge runs/a {OWN} --name a/b",
    f"judge runs/a {OWN} --name ..",
    f"judge runs/a {OWN} --name {LONG}",
    f"judge runs/a {OWN} --name=",
    f"judge runs/a {OWN} --budget nan",
    f"judge runs/a {OWN} --budget 0",
    f"judge runs/a {OWN} --price-in -1",
    f"judge runs/a {OWN} --price-out inf",
    f"judge runs/a {OWN} --judge-temperature nan",
    f"judge runs/a {OWN} --temperature nan",
    f"judge runs/a {OWN} --top-p 2",
    f"judge runs/a {OWN} --max-new-tokens 0",
    f"judge runs/a {OWN} --seed {2**70}",
    "serve nowhere --port 0",
    "serve runs --port 0",
    "serve runs/a runs/a --port 0",
    "serve runs/a --port 0 --host a..b",
    "serve runs/a --port 0 --host 192.0.2.1",
    "serve runs/a --port 0 --host=",
    "serve runs/a --port 0 --patience nan",
    "serve runs/a --port 0 --patience inf",
    "serve runs/a --port 0 --checkpoint nosuch",
    "chat nowhere",
    "chat runs/a --temperature nan",
    "chat runs/a --top-k 0",
    "chat runs/a --repetition-penalty -1",
    "chat runs/a --beams 4",
    "chat runs/a --system short",
    f"chat runs/a --seed {2**70}",
    "ladder config.yaml --sizes 16x1 --tokens 1k --out config.yaml",
    "mup check config.yaml --out text",
    "plan nowhere",
    "plan config.yaml --gpu nosuch",
    f"plan config.yaml --gpu H100 --gpus {10**9}",
    "plan config.yaml --gpu H100 --budget nan",
    "plan config.yaml --gpu H100 --budget inf",
    "plan config.yaml --gpu H100 --budget -1",
    "plan config.yaml --gpu H100 --rate nan",
    "plan config.yaml --gpu H100 --overhead inf",
    "plan config.yaml --probe-seconds inf",
    f"plan config.yaml --vocab-size {10**20}",
    f"trace config.yaml --vocab-size {10**20}",
    f"noise config.yaml --seeds {10**9} --yes",
    f"noise config.yaml --repeats {10**9} --yes",
    f"ladder config.yaml --sizes 16x1 --tokens 1k --seeds {10**9} --yes",
    f"sweep config.yaml --param optimizer.lr=1e-4..1e-3 --trials {10**9}",
    f"sweep config.yaml --param optimizer.lr=1e-4..1e-3 --seeds {10**9}",
    f"lr-find config.yaml --steps {10**14}",
    f"mup check config.yaml --seeds {10**9}",
    "trace nowhere",
    "trace config.yaml --set model.layers=1e9",
    "check nowhere.py:A",
    "check ./exits.py:A",
    "config show nowhere",
    "config show config.yaml --set a",
    "run experiments/none",
    "run experiments/e --arms nosuch --yes",
    "run experiments/e --seeds 0 --yes",
    "run config.yaml",
    "report experiments/none",
    "paper experiments/none",
    "noise nowhere",
    "sweep nowhere --param optimizer.lr=1e-4..1e-3",
    "ladder nowhere --sizes 16x1 --tokens 1k",
    "lr-find nowhere",
    "soup runs/a --out s",
    "soup runs/a nowhere --out s",
    "soup runs/a runs/b --out runs/a",
    "import nowhere --name x",
    "import config.yaml --name x",
    "import runs/a --name a/b",
    "export nowhere --out out",
    "export runs/a --format hf --out out",
    "export runs/a --out runs/b",
    "tokenizer train --input nowhere --name x",
    "tokenizer train --input text --name a/b",
    "tokenizer train --input text --name x --vocab-size -1",
    f"tokenizer train --input text --name x --vocab-size {10**18}",
    "tokenizer import nowhere --name x",
    "tokenizer import letters --name x",
    "tokenizer train --input text --name gpt2 --vocab-size 270",
    "tokenizer show nowhere x",
    "data prepare --input nowhere --tokenizer byte --out d",
    "data prepare --input text --tokenizer nosuch --out d",
    "data prepare --input text --tokenizer byte --out data",
    "data prepare --input text --validation text --tokenizer byte --out d",
    "data prepare --input text --tokenizer byte --out d --workers 1000000",
    "data prepare --input text --tokenizer byte --out d --shard-size 1",
    f"data prepare --input text --tokenizer byte --out {LONG}",
    "data info nowhere",
    "data verify text",
    "new experiment a/b --baseline config.yaml",
    "new x --baseline config.yaml --out config.yaml/x",
    "new component mlp x --base config.yaml --out config.yaml/x",
    "new nosuch --baseline nowhere",
]

USAGE = {
    ("train", "config.yaml", "--nosuch"),
    ("train",),
    ("nosuch",),
    ("chat", "runs/a", "--beams", "4"),
    ("run", "experiments/e", "--seeds", "0", "--yes"),
}
"""What does not come as far as a command."""

EXPERIMENT = {
    "hypothesis": "h",
    "baseline": "../../config.yaml",
    "arms": "{gated: {model: {block: {mlp: SwiGLU}}}}",
    "seeds": "[1, 2, 3]",
    "metric": "loss",
    "decision": "{smallest_effect: 0.01}",
}
STATEMENTS = [
    *("metric: {accuracy: nosuchtask}", "metric: {accuracy: loss}", "metric: {logged: x, better: sideways}"),
    *("metric: {}", "metric: nosuch", "metric: {tokens_to: low}", "metric: {tokens_to: 1, seconds_to: 1}"),
    *("tune: {optimizer.lr: []}", "tune: {seed: [1, 2]}", "tune: {name: [a, b]}", "tune: {nosuch: [1]}", "tune: 3"),
    *("tune: {optimizer.lr: [" + ", ".join(["x1"] * 9000) + "]}", "tune: {model.dim: [0]}", "tune: {model.heads: [3]}"),
    *("seeds: 1000000", "seeds: 0", "seeds: [1, 1]", "seeds: [a]", "seeds: [-1]", "seeds: []", "seeds: 1"),
    *("decision: {smallest_effect: 1e300}", "decision: {smallest_effect: 0}", "decision: {smallest_effect: .nan}"),
    *("decision: {smallest_effect: 0.1, alpha: 1e-300}", "decision: {smallest_effect: 0.1, alpha: 1}", "decision: 3"),
    *("arms: {}", "arms: [1]", "arms: {a: {model: {layers: 0}}}", "arms: {'a b': {model: {layers: 1}}}"),
    *("arms: {a: {data: {path: nowhere}}}", "arms: {a: {model: {dim: 1000000000}}}", "arms: {a: {seed: 3}}"),
    *("arms: {a: {train: {sequence_length: 64}}}", "arms: {a: {eval: {tokens: 64}}}", "arms: {a: {}}"),
    *("baseline: nowhere.yaml", "baseline: .", "hypothesis: [1]", "common: 5", "common: {nosuch: 1}", "nosuch: 1"),
    *("match: {flops: 200%}", "match: nosuch", "compute_curve: 3", "compute_curve: {tokens: []}"),
    *("compute_curve: {tokens: [0]}", "dollars_per_hour: -1", "dollars_per_hour: .inf", "tune_seeds: []"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a config, three runs, an experiment, and files of components that nobody should write."""
    folder = tmp_path_factory.mktemp("hostile")
    make_data(folder)
    (folder / "config.yaml").write_text(TINY.replace("5120", "512") + "data: {path: data}\n")
    for name, setting in (("a", "seed=1"), ("b", "seed=2"), ("long", "train.sequence_length=64")):
        gptlab("train", "config.yaml", "--out", f"runs/{name}", "--set", setting, cwd=folder)
    for name in ("e", "x"):
        (folder / "experiments" / name).mkdir(parents=True)
    (folder / "experiments/e/experiment.yaml").write_text("".join(f"{k}: {v}\n" for k, v in EXPERIMENT.items()))
    for name, text in IDEAS.items():
        (folder / f"{name}.py").write_text(text)
    gptlab("tokenizer", "train", "--kind", "char", "--input", "text", "--name", "letters", cwd=folder)
    (folder / "tokenizers/letters").rename(folder / "letters")
    (folder / "theirs").mkdir()
    for name in ("broken.gguf", "broken.pt", "theirs/config.json"):
        (folder / name).write_bytes(b"{\x00")
    return folder


def snapshot(place: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in sorted(place.rglob("*")) if path.is_file()}


def refuse(place: Path, *arguments: str, **environment: str) -> str:
    """Run what must be refused; its line."""
    before = snapshot(place)
    done = gptlab(*arguments, cwd=place, check=False, **environment)
    after = snapshot(place)
    for path in set(after) - set(before):  # the next case is not to suffer for it
        Path(path).unlink()
    assert done.returncode == 2, (done.returncode, done.stderr[-2000:])
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if "Usage:" in done.stderr:  # the parser's own way to say it
        assert arguments in USAGE, done.stderr
    else:
        assert len(lines) == 1, done.stderr
        assert done.stderr.strip().splitlines()[-1] == lines[0]
        assert len(lines[0]) < 700, lines[0]
    assert after == before
    return lines[0] if lines else done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda text: text[:40])
def test_a_setting_that_cannot_be(place: Path, setting: str) -> None:
    refuse(place, "train", "config.yaml", "--out", "runs/new", "--set", setting)


@pytest.mark.slow
@pytest.mark.parametrize("idea", IDEAS)
def test_a_component_that_nobody_should_write(place: Path, idea: str) -> None:
    said = refuse(place, "train", "config.yaml", "--out", "runs/new", "--set", f"model.block.mlp=./{idea}.py:A")
    assert f"{idea}.py" in said or "A: its base classes" in said


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda text: text[:60])
def test_a_command_that_asks_what_is_not_there(place: Path, command: str) -> None:
    refuse(place, *command.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment", [{"RANK": "x"}, {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "1"}, {"WORLD_SIZE": "0"}], ids=str
)
def test_what_another_launcher_left_in_the_environment(place: Path, environment: dict[str, str]) -> None:
    said = refuse(place, "train", "config.yaml", "--out", "runs/new", **environment)
    assert "start with torchrun" in said


@pytest.mark.slow
def test_a_line_break_in_a_path(place: Path) -> None:
    refuse(place, "train", "config.yaml", "--out", "a\nb")


@pytest.mark.slow
@pytest.mark.parametrize("changed", STATEMENTS, ids=lambda text: text[:40])
def test_a_statement_is_checked_whole_before_its_first_run(place: Path, changed: str) -> None:
    key, _, value = changed.partition(": ")
    text = "".join(f"{k}: {v}\n" for k, v in {**EXPERIMENT, key: value}.items())
    (place / "experiments/x/experiment.yaml").write_text(text)
    refuse(place, "run", "experiments/x", "--yes", "--dry-run", "--no-probe")
    shutil.rmtree(place / "runs/.plans", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"a: [" * 5000, b"model: {dim: 3", b"3", b"- 1", b"a: &a [*a]", b"\x00"]
)
def test_a_config_that_is_none(place: Path, content: bytes) -> None:
    (place / "broken.yaml").write_bytes(content)
    refuse(place, "train", "broken.yaml", "--out", "runs/new")
