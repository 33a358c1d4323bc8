"""A compiled step gives what the model gives, for every kind of layer, and is compiled once for all lengths."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from generating import VARIANTS, Heard, make_model

from gptlab.errors import GptlabError
from gptlab.inference.compiled import CompiledSteps, check_compiles, warm_up
from gptlab.inference.engine import Engine, Request
from gptlab.inference.generate import Sampling, generate

CPU = torch.device("cpu")
GREEDY = Sampling(max_new_tokens=30, temperature=0, stop_at_end=False)
PROMPTS = {"one": [[1, 2, 3]], "alike": [[1, 2, 3], [4, 5, 6]], "of other lengths": [[7], [1, 2, 3, 4], [5, 6]]}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compilations() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("variant", ["rope", "windows", "latent", "the key before", "experts"])
def test_every_kind_of_layer_goes_on_as_without(variant: str) -> None:
    model = make_model(**VARIANTS[variant])
    compiled = CompiledSteps(model, backend="eager")
    for prompts in (PROMPTS["one"], PROMPTS["of other lengths"]):
        assert generate(compiled, prompts, GREEDY, stop_ids=(), device=CPU) == generate(
            model, prompts, GREEDY, stop_ids=(), device=CPU
        )


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_nothing_is_compiled_after_warming_up(prompts: list[list[int]]) -> None:
    model = CompiledSteps(make_model(context_length=1200), backend="eager")
    warm_up(model, prompts)
    before = compilations()
    assert before > 0
    generate(model, prompts, Sampling(max_new_tokens=600, temperature=0), stop_ids=(), device=CPU)
    assert compilations() == before, "a longer text, or a larger cache, was compiled anew"


def test_a_server_compiles_nothing_after_warming_up() -> None:
    model = make_model(context_length=64)
    compiled = CompiledSteps(model, backend="eager")
    for texts in ([[0, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0, 0]]):
        warm_up(compiled, texts, joining=True)
    before = compilations()
    engine = Engine(compiled, device=CPU).start()
    heard = [Heard() for _ in range(5)]
    texts = [[1, 2, 3], [1, 2, 3], [4, 5, 6, 7], [8, 9], [1, 2, 3]]
    for listener, text in zip(heard, texts, strict=True):
        engine.submit([Request(text, Sampling(temperature=0), listener, new_tokens=20)])
    for listener, text in zip(heard, texts, strict=True):
        assert listener.done.wait(60)
        expected = generate(model, [text], Sampling(max_new_tokens=20, temperature=0), stop_ids=(), device=CPU)
        assert [token.id for token in listener.tokens] == expected[0]
    engine.close()
    assert compilations() == before


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_real_kernels_give_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptlab.inference.compiled._INDUCTOR", {"freezing": True})  # trials take their time
    model = make_model()
    compiled = CompiledSteps(model)
    warm_up(compiled, [[1, 2, 3]])
    one = PROMPTS["one"]
    assert generate(compiled, one, GREEDY, stop_ids=(), device=CPU) == generate(
        model, one, GREEDY, stop_ids=(), device=CPU
    )


def test_a_compiler_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no compiler here\nand more")

    compiled = CompiledSteps(make_model(), backend="eager")
    monkeypatch.setattr(compiled, "_step", fail)
    with pytest.raises(GptlabError, match="no compiler here\\); leave it out"):
        warm_up(compiled, [[1, 2, 3]])


@pytest.mark.parametrize(("device", "quantized", "why"), [("cuda", None, "for CPUs"), ("cpu", "int8", "int8")])
def test_what_is_not_compiled_is_said(device: str, quantized: str | None, why: str) -> None:
    with pytest.raises(GptlabError, match=why):
        check_compiles(torch.device(device), quantized)
