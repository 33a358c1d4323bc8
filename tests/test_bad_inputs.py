"""What people get wrong: exit code 2, one line that names cause and fix, no traceback, nothing half-written."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, gptlab, make_data, only_run, plain_json, rows, snapshot

Mistake = Callable[..., str]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a config, and a finished run with two checkpoints."""
    folder = tmp_path_factory.mktemp("ready")
    make_data(folder)
    (folder / "config.yaml").write_text(TINY)
    gptlab("train", "config.yaml", *settings("name=kept", "checkpoint.every=10"), cwd=folder)
    return folder


@pytest.fixture
def place(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to break, as the working folder."""
    shutil.copytree(ready, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def settings(*options: str) -> list[str]:
    return [part for option in ("data.path=data", *options) for part in ("--set", option)]


def test_unknown_config_key(place: Path, mistake: Mistake) -> None:
    (place / "config.yaml").write_text(TINY.replace("batch_tokens", "batch_token"))
    error = mistake("train", "config.yaml", *settings())
    assert "config.yaml:4: train.batch_token: unknown key 'batch_token'; did you mean 'batch_tokens'?" in error


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train.tokens=many", "expected a whole number such as 1000 or 2M"),
        ("model.dim=[1, 2]", "expected a whole number"),
        ("checkpoint.best=maybe", "expected true or false"),
        ("train.dtype=float8", "expected 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("model.block.mlp.use=SwiGlu", "did you mean 'SwiGLU'?"),
        ("model.dropuot=0.1", "GPT has no argument 'dropuot'; did you mean 'dropout'?"),
        ("name=../elsewhere", "expected text that matches"),
        ("train.batch_tokens=100", "not a multiple of train.sequence_length (32); use 96"),
        ("nonsense", "write it as section.key=value"),
    ],
)
def test_wrong_types_and_values(place: Path, mistake: Mistake, setting: str, expected: str) -> None:
    assert expected in mistake("train", "config.yaml", *settings(setting))


def test_missing_files(place: Path, mistake: Mistake) -> None:
    assert "no config file at nowhere.yaml" in mistake("train", "nowhere.yaml")
    error = mistake("train", "config.yaml", "--set", "data.path=nowhere")
    assert "gptlab data prepare" in error
    assert "not a run folder" in mistake("eval", "runs/nothing", "--tasks", "loss")
    assert "not a run folder" in mistake("sample", "runs/nothing", "Hello")
    error = mistake("tokenizer", "train", "--input", "nowhere.txt", "--vocab-size", "300", "--name", "x")
    assert "nowhere.txt" in error
    assert "no data named" in mistake("train", "config.yaml")


def test_empty_corpus(place: Path, mistake: Mistake) -> None:
    (place / "empty.txt").write_text("")
    error = mistake("data", "prepare", "--input", "empty.txt", "--tokenizer", "byte", "--out", "out")
    assert "empty.txt" in error or "no text" in error
    assert not (place / "out").exists()
    mistake("tokenizer", "train", "--input", "empty.txt", "--vocab-size", "300", "--name", "x")


def test_invalid_utf8(place: Path, mistake: Mistake) -> None:
    (place / "bad.txt").write_bytes(b"fine so far \xff\xfe and on")
    error = mistake("data", "prepare", "--input", "bad.txt", "--tokenizer", "byte", "--out", "out")
    assert "bad.txt" in error
    assert "12" in error  # where
    assert "replace" in error  # how to go on


def test_tokenizer_of_another_data_set(place: Path, mistake: Mistake) -> None:
    gptlab("tokenizer", "train", "--input", "text", "--vocab-size", "280", "--name", "other", cwd=place)
    error = mistake("train", "config.yaml", *settings("data.tokenizer=other"))
    assert "was made with tokenizer byte" in error


def shard(place: Path) -> Path:
    (found,) = (place / "data").glob("*train*.bin")
    return found


def rewrite_manifest(place: Path, path: Path) -> None:
    """Make dataset.json agree with a shard that was tampered with, so that only its content is wrong."""
    import hashlib

    manifest = plain_json(place / "data/dataset.json")
    manifest["splits"]["train"]["shards"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (place / "data/dataset.json").write_text(json.dumps(manifest))


def test_token_id_beyond_the_vocabulary(place: Path, mistake: Mistake) -> None:
    path = shard(place)
    ids = np.memmap(path, dtype=np.uint16, mode="r+", offset=1024)
    ids[:] = np.where(ids == ord("c"), 60000, ids)
    ids.flush()
    rewrite_manifest(place, path)
    error = mistake("train", "config.yaml", *settings("name=fresh"))
    assert "60000" in error
    assert path.name in error


def test_truncated_shard(place: Path, mistake: Mistake) -> None:
    path = shard(place)
    path.write_bytes(path.read_bytes()[:-100])
    assert path.name in mistake("train", "config.yaml", *settings("name=fresh"))


def test_flipped_byte(place: Path, mistake: Mistake) -> None:
    path = shard(place)
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(bytes(content))
    error = mistake("data", "verify", "data")
    assert path.name in error


def test_impossible_shapes(place: Path, mistake: Mistake) -> None:
    error = mistake("train", "config.yaml", *settings("model.heads=5", "name=fresh"))
    assert "5 heads do not divide the width 32; use 4" in error
    error = mistake(
        "train", "config.yaml", *settings("train.sequence_length=8192", "train.batch_tokens=8192", "name=fresh")
    )
    assert "8192" in error


IDEAS = """
from torch import nn


class Wide(nn.Module):
    slot = "mlp"

    def __init__(self, dim, *, factor: int = 2):
        super().__init__()
        self.up = nn.Linear(dim, factor * dim)

    def forward(self, x):
        return self.up(x)


class Needs(Wide):
    def __init__(self, dim, *, factor: int):
        super().__init__(dim, factor=factor)


class Asks(Wide):
    def __init__(self, dim, colour):
        super().__init__(dim)


class Crashes(Wide):
    def __init__(self, dim):
        self.factor = undefined


class Stumbles(Wide):
    def forward(self, x):
        return x.nope()


class Forgets(Wide):
    def forward(self, x):
        self.up(x)
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Needs", "model.block.mlp.factor: 'factor' is required; give it a value"),
        ("Asks", "Asks asks for 'colour', which slot mlp is not given; it may ask for dim, layer_index"),
        ("Wide", "idea.py:5: Wide was given (B, T, D) = [1, 32, 32] and returns a tensor of [1, 32, 64]; forward must"),
        ("Forgets", "Forgets was given (B, T, D) = [1, 32, 32] and returns a NoneType; forward must return the shape"),
        ("Crashes", "idea.py:28: Crashes cannot be built: NameError: name 'undefined' is not defined"),
        ("Stumbles", "idea.py:33: AttributeError: 'Tensor' object has no attribute 'nope'; `gptlab check"),
    ],
)
@pytest.mark.parametrize("command", ["train", "trace"])
def test_an_idea_that_does_not_fit(place: Path, mistake: Mistake, command: str, name: str, expected: str) -> None:
    (place / "idea.py").write_text(IDEAS)
    told = mistake(command, "config.yaml", *settings("name=x", f"model.block.mlp=./idea.py:{name}"))
    assert expected in told


def test_too_few_tokens_for_the_epochs_allowed(place: Path, mistake: Mistake) -> None:
    error = mistake("train", "config.yaml", *settings("data.epochs=1", "train.tokens=1M", "name=fresh"))
    assert "epochs" in error


def test_existing_run(place: Path, mistake: Mistake) -> None:
    error = mistake("train", "config.yaml", *settings("name=kept"))
    assert "exists already; add --resume" in error


def damage(checkpoint: Path) -> None:
    (file,) = checkpoint.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(bytes(content))


def test_every_checkpoint_damaged(place: Path, mistake: Mistake) -> None:
    run = only_run(place)
    for checkpoint in (run / "checkpoints").iterdir():
        damage(checkpoint)
    error = mistake("train", "config.yaml", *settings("name=kept", "checkpoint.every=10"), "--resume")
    assert "every checkpoint" in error


def test_one_damaged_checkpoint_is_passed_over(place: Path) -> None:
    run = only_run(place)
    expected = rows(run)
    newest = max((run / "checkpoints").iterdir())
    damage(newest)
    (run / "model.safetensors").unlink()
    done = gptlab("train", "config.yaml", *settings("name=kept", "checkpoint.every=10"), "--resume", cwd=place)
    assert "is damaged" in done.stderr
    assert "from step 10" in done.stderr
    assert rows(run) == expected


def test_checkpoint_of_another_config(place: Path, mistake: Mistake) -> None:
    run = str(only_run(place).relative_to(place))
    error = mistake("train", run, "--set", "model.dim=64", "--resume")
    assert "is from another config: model.dim was 32 and is now 64" in error
    error = mistake("train", run, "--set", "seed=9", "--resume")
    assert "seed" in error


def test_weights_of_another_shape(place: Path, mistake: Mistake) -> None:
    run = only_run(place)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("dim: 32", "dim: 64", 1))
    assert "does not fit config.yaml" in mistake("sample", str(run), "Hello")
    (run / "model.safetensors").write_bytes(b"nonsense")
    assert "is damaged" in mistake("sample", str(run), "Hello")


def test_disk_full_while_saving(place: Path) -> None:
    """A limit on file size stands in for a full disk: small files still fit, the tensors of the checkpoint do not."""
    run = only_run(place)
    before = {path.name: snapshot(path) for path in (run / "checkpoints").iterdir()}
    limit = 150_000

    def restrict() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    import subprocess

    options = ["--set", "train.tokens=10240", "--resume"]
    done = subprocess.run(
        [sys.executable, "-m", "gptlab", "train", str(run.relative_to(place)), *options],
        cwd=place,
        capture_output=True,
        text=True,
        preexec_fn=restrict,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "cannot save a checkpoint" in errors[0]
    assert "free some space" in errors[0]
    assert "Traceback" not in done.stderr
    assert {path.name: snapshot(path) for path in (run / "checkpoints").iterdir()} == before
    assert rows(run)[-1]["step"] == 20  # what was finished stays as it is
    done = gptlab("train", str(run.relative_to(place)), *options, cwd=place)
    (run,) = (folder for folder in (place / "runs").iterdir() if folder != run and folder.is_dir())
    assert rows(run)[-1]["step"] == 40


def test_a_run_that_diverges_says_where(place: Path, mistake: Mistake) -> None:
    (place / "idea.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "class Exploding(nn.Module):\n"
        "    def __init__(self, dim, *, after: int = 5) -> None:\n"
        "        super().__init__()\n"
        "        self.weight, self.calls, self.after = nn.Parameter(torch.ones(dim)), 0, after\n\n"
        "    def forward(self, x):\n"
        "        self.calls += self.training\n"
        "        return x * self.weight * (float('nan') if self.calls > self.after else 1.0)\n"
    )
    (place / "diverging.yaml").write_text("base: config.yaml\nmodel: {block: {mlp: {use: './idea.py:Exploding'}}}\n")
    arguments = [*settings("system.micro_batch=8", "checkpoint.every=2")]
    done = gptlab("train", "diverging.yaml", *arguments, cwd=place, check=False)
    assert done.returncode == 3
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "step 6: the loss is nan" in error  # two layers, each with a count of its own
    run = next(path for path in (place / "runs").iterdir() if path.name.startswith("diverging"))
    assert "step-00000004 is whole" in error
    assert max(path.name for path in (run / "checkpoints").iterdir()) == "step-00000004"
    assert (run / "code" / "idea.py").is_file()
    kept = gptlab(
        "train", "diverging.yaml", *arguments, *settings("train.bad_step=skip", "train.tokens=2048"), cwd=place
    )
    assert kept.returncode == 0
    last = max((place / "runs").glob("diverging*"), key=lambda path: path.stat().st_mtime)
    assert [row["step"] for row in rows(last) if row.get("skipped")] == [6, 7, 8]
