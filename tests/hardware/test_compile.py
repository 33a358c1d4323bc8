"""Modes of torch.compile: what is asked for, what is refused, and that nothing is kept where a CUDA graph writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, make_data, rows
from torch import Tensor, nn

from gptlab.config import config_from, config_hash, load_config
from gptlab.errors import ConfigError
from gptlab.hardware.compile import GRAPHS, choose_compile, keep_gradients, try_compile
from gptlab.loss import LossSum, TokenBatch
from gptlab.parallel import World, choose_layout
from gptlab.training.accumulation import accumulate
from gptlab.training.loop import train

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("asked", "on_cpu", "on_cuda"),
    [
        ("auto", (False, None), (True, None)),
        (True, (True, None), (True, None)),
        (False, (False, None), (False, None)),
        ("max-autotune-no-cudagraphs", *[(True, "max-autotune-no-cudagraphs")] * 2),
        ("reduce-overhead", None, (True, "reduce-overhead")),
        ("max-autotune", None, (True, "max-autotune")),
    ],
)
def test_what_is_asked_for(asked: str | bool, on_cpu: tuple | None, on_cuda: tuple) -> None:
    config = config_from({"system": {"compile": asked}})
    assert choose_compile(config.system.compile, CUDA) == on_cuda
    assert config_hash(config, {}) == config_hash(config_from({}), {})
    if on_cpu is not None:
        assert choose_compile(config.system.compile, CPU) == on_cpu
        return
    with pytest.raises(ConfigError, match=rf"system\.compile: {asked} runs CUDA graphs, and this is cpu; use true"):
        choose_compile(config.system.compile, CPU)
    with pytest.raises(ConfigError, match="for one process, and here are 2; use true"):
        choose_compile(config.system.compile, CUDA, 2)


def test_other_words_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"system\.compile.*reduce"):
        config_from({"system": {"compile": "reduced-overhead"}})


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compile")
    make_data(folder)
    (folder / "tiny.yaml").write_text(TINY)
    return folder


def run(setting: Path, name: str, *overrides: str) -> Path:
    sets = [f"data.path={setting}/data", "train.tokens=768", "model.layers=1", *overrides]
    return train(load_config(setting / "tiny.yaml", sets), folder=setting / name).folder


def test_refused_before_anything_is_written(setting: Path) -> None:
    with pytest.raises(ConfigError, match="CUDA graphs"):
        run(setting, "graphs", "system.compile=reduce-overhead")
    assert not (setting / "graphs").exists()


@pytest.mark.slow
def test_a_mode_reaches_torch_and_computes_the_same(setting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real compilation, of the model and of its loss."""
    asked, compile_ = [], torch.compile

    def spy(*arguments: Any, **options: Any) -> Any:
        asked.append(options.get("mode"))
        return compile_(*arguments, **options)

    eager = run(setting, "eager", "system.compile=false")
    monkeypatch.setattr(torch, "compile", spy)
    compiled = run(setting, "compiled", "system.compile=max-autotune-no-cudagraphs")
    torch._dynamo.reset()
    assert asked == ["max-autotune-no-cudagraphs"] * 2
    losses = [[row["train/loss"] for row in rows(folder) if "train/loss" in row] for folder in (eager, compiled)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0] != losses[1]  # otherwise nothing was compiled


class _Static(torch.autograd.Function):
    """The identity; its gradient always lies in the same memory, as that of a CUDA graph."""

    memory = torch.empty(3)

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        _Static.memory.copy_(gradient)
        return _Static.memory.view(3)


class _Graphs(nn.Module):
    """Hidden states w · x; `unused` has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def loss(self, model: nn.Module, batch: TokenBatch) -> Any:
        return LossSum((_Static.apply(self.w) * batch.inputs).sum(), torch.tensor(3))


def accumulated(*, graphs: bool) -> tuple[Tensor | None, ...]:
    model = _Graphs()
    pieces = [TokenBatch(*[torch.tensor([[1.0, 2.0, 3.0]]) * k] * 3) for k in (1, 10, 100)]
    layout = choose_layout(World(), CPU)
    accumulate(model, model.loss, pieces, global_targets=1, layout=layout, dtype=torch.float32, graphs=graphs)
    return model.w.grad, model.unused.grad


def test_gradients_are_moved_before_they_are_overwritten() -> None:
    moved, none = accumulated(graphs=True)
    assert moved.tolist() == [111, 222, 333]
    assert none is None  # an optimizer must not take a step for what no gradient has reached
    assert accumulated(graphs=False)[0].tolist() != [111, 222, 333]  # torch takes the memory as it is


def test_gradients_are_moved_once() -> None:
    layer, kept = nn.Linear(2, 2), set()
    layer(torch.ones(1, 2)).sum().backward()
    before, places = [p.grad for p in layer.parameters()], []
    for _ in range(2):
        keep_gradients(layer, kept)
        places.append([p.grad.data_ptr() for p in layer.parameters()])
    assert places[0] == places[1]
    assert set(places[0]).isdisjoint(tensor.data_ptr() for tensor in before)
    assert all(torch.equal(p.grad, b) for p, b in zip(layer.parameters(), before, strict=True))


@pytest.mark.parametrize("mode", [*GRAPHS, None])
def test_each_call_of_the_model_begins_a_step(mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    expected = model(x)
    assert try_compile(model, None, lambda: model(x), mode)
    torch.testing.assert_close(model(x), expected)
    assert len(begun) == (0 if mode is None else 2)
    torch._dynamo.reset()
