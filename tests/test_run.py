"""A trained run in Python: `gptlab.train`, `gptlab.load`, and what can be done with what they give."""

from __future__ import annotations

import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers import TINY, make_data

import gptlab
from gptlab.config import RunConfig, config_from
from gptlab.errors import CheckpointError, GptlabError


def configure(place: Path, **sections: dict[str, object]) -> RunConfig:
    values = yaml.safe_load(TINY.replace("1e-3", "0.001")) | {"data": {"path": str(place / "made/data")}}
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return config_from(values)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_data(folder / "made")
    return folder


@pytest.fixture(scope="module")
def config(place: Path) -> RunConfig:
    return configure(place, checkpoint={"every": 10, "keep": 5})


@pytest.fixture(scope="module")
def trained(place: Path, config: RunConfig) -> gptlab.Run:
    return gptlab.train(config, folder=place / "trained")


@pytest.fixture
def copy(trained: gptlab.Run, tmp_path: Path) -> Path:
    """The run's folder, to change and break."""
    shutil.copytree(trained.folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_train_gives_the_run(trained: gptlab.Run, config: RunConfig) -> None:
    assert isinstance(trained, gptlab.Run)
    assert trained.finished
    assert trained.step == config.total_steps == 20
    assert [row["step"] for row in trained.metrics if "train/loss" in row] == list(range(1, 21))
    assert trained.metrics[-1]["val/loss"] < trained.metrics[0]["train/loss"] - 0.5
    files = {path.name for path in trained.folder.iterdir()}
    assert files >= {"config.yaml", "metrics.jsonl", "metrics.csv", "loss.png", "log.txt", "env.json", "code"}


def test_train_is_a_function_of_the_package() -> None:
    from gptlab.training.loop import train

    assert gptlab.train is train
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = gptlab.trian  # type: ignore[attr-defined]


def test_the_default_folder_is_named_after_the_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = gptlab.train(configure(place, train={"tokens": 256}, seed={"data": 3}))
    assert run.folder.parent == Path("runs")
    assert run.folder.name.startswith("run-")
    assert run.folder.name.endswith("-seed1-3-1")
    with pytest.raises(GptlabError, match="exists already; add resume=True"):
        gptlab.train(configure(place, train={"tokens": 256}, seed={"data": 3}))


def test_importing_gptlab_loads_no_torch() -> None:
    code = "import sys, gptlab; gptlab.load_config; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("gptlab.training.loop, gptlab.training.soup, gptlab.interop.huggingface", "torch._dynamo"),  # for 1.3 s
        ("gptlab.contracts.scaffold, gptlab.lab.report.compare, gptlab.lab.report.registry", "torch"),
    ],
)
def test_nobody_imports_what_they_do_not_need(modules: str, heavy: str) -> None:
    code = f"import sys, {modules}; print({heavy!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_load_gives_model_tokenizer_and_config(trained: gptlab.Run, config: RunConfig) -> None:
    run = gptlab.load(trained.folder, device="cpu")
    assert run.config == config
    assert run.tokenizer.decode(run.tokenizer.encode("the cat")) == "the cat"
    assert not run.model.training
    for (name, weight), other in zip(run.model.named_parameters(), trained.model.parameters(), strict=True):
        assert torch.equal(weight, other), name
    assert run.step == 20


def test_a_folder_can_be_moved_and_loaded_from_anywhere(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    assert gptlab.load("copy", device="cpu").step == 20


def test_generate_takes_several_prompts_and_a_seed_repeats_it(trained: gptlab.Run) -> None:
    first = trained.generate(["the", "a"], max_new_tokens=5, seed=1)
    assert first == trained.generate(["the", "a"], max_new_tokens=5, seed=1)
    assert len(first) == 2
    assert all(isinstance(text, str) for text in first)
    greedy = trained.generate(["the", "until noon"], max_new_tokens=5, temperature=0, stop_at_end=False)
    assert trained.generate("the", max_new_tokens=5, temperature=0, stop_at_end=False) == greedy[0]  # a text for a text
    assert isinstance(trained.generate("the cat " * 9, max_new_tokens=40, seed=1, stop_at_end=False), str)
    seeds = {tuple(trained.generate(["the"], max_new_tokens=8, seed=seed)) for seed in range(4)}
    assert len(seeds) > 1
    with pytest.raises(GptlabError, match="max_new_tokens must be at least 1"):
        trained.generate("the", max_new_tokens=0)


@torch.no_grad()
def by_hand(run: gptlab.Run, text: str) -> float:
    """Mean of −log p over the bytes of `text`, window after window, from logits."""
    ids = [run.tokenizer.end_of_text, *run.tokenizer.encode(text)]
    length = run.config.train.sequence_length
    total = 0.0
    for start in range(0, len(ids) - 1, length):
        window = torch.tensor(ids[start : start + length + 1])
        logits = run.model(window[None, :-1], return_logits=True)[0].double()
        total += float(F.cross_entropy(logits, window[1:], reduction="sum"))
    return total / (len(ids) - 1)


@pytest.mark.parametrize(
    "text", ["t", "the cat sat on a mat", "the cat sat until noon. " * 9, "x" * 32, "é" * 16 + "y"]
)
def test_loss_is_what_it_is_by_hand(trained: gptlab.Run, text: str) -> None:
    result = gptlab.load(trained.folder, dtype="float32").loss(text)
    assert result.loss == pytest.approx(by_hand(trained, text), rel=1e-5)
    assert result.tokens == result.bytes == len(text.encode())  # a token is a byte here
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.bits_per_byte == pytest.approx(result.loss / math.log(2))


def test_a_checkpoint_by_name(copy: Path) -> None:
    final, early = gptlab.load(copy), gptlab.load(copy, checkpoint="step-00000010")
    assert (final.step, early.step) == (20, 10)
    assert early.loss("the cat sat").loss != final.loss("the cat sat").loss
    last = gptlab.load(copy, checkpoint="step-00000020")
    assert last.loss("the cat sat").loss == final.loss("the cat sat").loss
    with pytest.raises(CheckpointError, match="has no checkpoint 'step-3'; it has step-00000010, step-00000020"):
        gptlab.load(copy, checkpoint="step-3")


def test_an_unfinished_run_loads_its_newest_checkpoint(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    run = gptlab.load(copy)
    assert (run.step, run.finished) == (20, False)
    shutil.rmtree(copy / "checkpoints/step-00000020")
    assert gptlab.load(copy).step == 10
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(CheckpointError, match="holds no weights yet; train it with"):
        gptlab.load(copy)


STOPPING = """
import signal, sys
import gptlab, gptlab.training.loop as train
kept = train.step
def step(job):
    if job.step == 24:
        signal.raise_signal(signal.SIGTERM)
    return kept(job)
train.step = step
config = gptlab.load_config(sys.argv[1], ["train.tokens=10240"])
run = train.train(config, resume=True, folder=sys.argv[1])
print(run.step, run.finished)
"""


def test_a_finished_run_that_goes_on_and_is_stopped_is_not_finished(copy: Path) -> None:
    """Its old final weights would otherwise be taken for its newest."""
    assert (copy / "model.safetensors").is_file()
    done = subprocess.run(
        [sys.executable, "-c", STOPPING, str(copy)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["25", "False"]
    assert "SIGTERM: stopped after step 25 of 40; continue with resume=True" in done.stderr
    run = gptlab.load(copy)
    assert (run.step, run.finished) == (25, False)
    assert max(row["step"] for row in run.metrics) == 25


def test_stopping_in_this_process(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gptlab.training.loop as training

    kept = training.step

    def step(job: training.Job) -> training.StepResult:
        if job.step == 3:
            signal.raise_signal(signal.SIGINT)
        return kept(job)

    monkeypatch.setattr(training, "step", step)
    config = configure(place, checkpoint={"every": 0})
    stopped = gptlab.train(config, folder=tmp_path / "run")
    assert (stopped.step, stopped.finished) == (4, False)
    monkeypatch.undo()
    resumed = gptlab.train(config, folder=tmp_path / "run", resume=True)
    assert (resumed.step, resumed.finished) == (20, True)
    whole = gptlab.train(config, folder=tmp_path / "whole")
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert [r.get("train/loss") for r in resumed.metrics] == [r.get("train/loss") for r in whole.metrics]


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a run folder"):
        gptlab.load(tmp_path)
    with pytest.raises(CheckpointError, match="is not a run folder"):
        gptlab.load(tmp_path / "nothing")
