"""Continuous batching: whoever else is there, a request gets what it would get alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest
import torch
from generating import VARIANTS, Heard, make_model

from gptlab.errors import BusyError, GptlabError
from gptlab.inference.cache import KVCache, RowCache
from gptlab.inference.engine import Engine, Request
from gptlab.inference.generate import Sampling, generate

CPU = torch.device("cpu")


def ask(prompt: Sequence[int], new_tokens: int, heard: Heard | None = None, **options: object) -> Request:
    given = {"temperature": 0.0, "stop_at_end": False, **options}
    own = {name: given.pop(name) for name in ("logprobs", "score_prompt") if name in given}
    return Request(prompt, Sampling(**given), heard or Heard(), new_tokens, **own)  # type: ignore[arg-type]


@pytest.fixture
def engine(request: pytest.FixtureRequest):
    """Engines that are closed in the end."""
    begun: list[Engine] = []

    def make(model: torch.nn.Module, **options: object) -> Engine:
        begun.append(Engine(model, device=CPU, **options).start())  # type: ignore[arg-type]
        return begun[-1]

    yield make
    for each in begun:
        each.close()


PROMPTS = [[1, 2, 3], [7] * 11, [5, 9, 4, 4, 30, 2, 60], list(range(13)), [8], [50, 3], [11] * 5, list(range(20, 33))]
LENGTHS = [40, 3, 60, 17, 1, 33, 70, 25]  # most outgrow the context


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_texts_are_those_of_each_alone(name: str, engine) -> None:
    model = make_model(**VARIANTS[name])
    alone = []
    for prompt, length in zip(PROMPTS, LENGTHS, strict=True):
        sampling = Sampling(max_new_tokens=length, temperature=0, stop_at_end=False)
        alone += generate(model, [prompt], sampling, stop_ids=(), device=CPU)
    running = engine(model, max_batch=5)
    requests = [ask(prompt, length) for prompt, length in zip(PROMPTS, LENGTHS, strict=True)]
    for request in requests:  # one after the other, so that they join a batch that runs
        running.submit([request])
        time.sleep(0.002)
    assert [request.listener.ids for request in requests] == alone  # type: ignore[attr-defined]
    assert {request.listener.reason for request in requests} == {"length"}  # type: ignore[attr-defined]
    assert max(len(set(row)) for row in alone) > 3  # and not one token over and over


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_of_rows_that_come_and_go_are_those_of_a_plain_pass(name: str) -> None:
    model = make_model(**VARIANTS[name])
    context, generator = model.context_length, torch.Generator().manual_seed(0)
    texts = torch.randint(61, (6, context), generator=generator).tolist()
    cache, rows = RowCache(len(model.blocks)), []  # of each row its text and how many of it are read

    def join(*joining: tuple[int, int]) -> None:
        width = max(count for _, count in joining)
        padding = [width - count for _, count in joining]
        read = KVCache(len(model.blocks), width, torch.tensor(padding) if any(padding) else None)
        model(torch.tensor([[0] * p + texts[t][:n] for p, (t, n) in zip(padding, joining, strict=True)]), cache=read)
        read.advance(width)
        cache.join(read)
        rows.extend([list(one) for one in joining])

    def leave(row: int) -> None:
        cache.leave(row)
        rows[row] = rows[-1]
        rows.pop()

    def step() -> None:
        ids = torch.tensor([[texts[t][n]] for t, n in rows])
        found = model.logits(model(ids, cache=cache)[:, -1])
        cache.advance(1)
        for row, (t, n) in enumerate(rows):
            rows[row][1] = n + 1
            expected = model(torch.tensor([texts[t][: n + 1]]), return_logits=True)[0, -1]
            torch.testing.assert_close(found[row], expected, rtol=2e-4, atol=2e-4)

    with torch.inference_mode():
        join((0, 3))
        step()
        join((1, 8), (2, 5))  # longer than what runs
        step()
        join((3, 1))
        step()
        step()
        leave(1)  # the longest goes: all places move
        step()
        leave(0)
        join((4, 2))
        step()
        while len(rows) > 1:
            leave(0)
            step()
        leave(0)
        assert cache.lengths == []
        join((5, context - 2))
        step()
        step()


def test_seeded_draws_do_not_depend_on_who_else_is_there(engine) -> None:
    model = make_model()
    options = {"temperature": 0.9, "top_p": 0.95, "top_k": 40}
    alone = [
        generate(model, [prompt], Sampling(40, **options, seed=seed, stop_at_end=False), stop_ids=(), device=CPU)[0]
        for seed, prompt in enumerate(PROMPTS)
    ]
    running = engine(model, max_batch=4)
    requests = [ask(prompt, 40, **options, seed=seed) for seed, prompt in enumerate(PROMPTS)]
    running.submit(requests)
    assert [request.listener.ids for request in requests] == alone  # type: ignore[attr-defined]
    again = ask(PROMPTS[3], 40, **options, seed=3)
    running.submit([again])
    assert again.listener.ids == alone[3]  # type: ignore[attr-defined]
    free = [ask([1], 20, temperature=1.0) for _ in range(2)]
    running.submit(free)
    assert free[0].listener.ids != free[1].listener.ids  # type: ignore[attr-defined]


def test_log_probabilities_are_the_models_own(engine) -> None:
    model = make_model()
    request = ask(PROMPTS[2], 6, temperature=2.0, seed=1, logprobs=3, score_prompt=True)
    engine(model).submit([request, *[ask(prompt, 9) for prompt in PROMPTS]])
    heard = request.listener
    assert isinstance(heard, Heard)
    text = [*PROMPTS[2], *heard.ids]
    with torch.no_grad():
        logprobs = model(torch.tensor([text[:-1]]), return_logits=True)[0].log_softmax(-1)
    every = [*heard.scores, *heard.tokens]
    assert [scored.id for scored in every] == text
    assert every[0].logprob is None
    assert every[0].top == ()
    for row, scored in zip(logprobs, every[1:], strict=True):
        assert scored.logprob == pytest.approx(float(row[scored.id]), abs=1e-4)
        values, ids = row.topk(3)
        assert [i for i, _ in scored.top] == ids.tolist()
        assert [v for _, v in scored.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_a_text_ends_where_it_should(engine) -> None:
    model = make_model()
    free = generate(model, [[1, 2, 3]], Sampling(40, 0.0, stop_at_end=False), stop_ids=(), device=CPU)[0]
    end = free[5]
    running = engine(model, stop_ids=[end])
    stops = ask([1, 2, 3], 40, stop_at_end=True, logprobs=0)
    goes_on, has_enough, only_scored = ask([1, 2, 3], 40), ask([1, 2, 3], 40, Heard(enough=2)), ask([1, 2, 3], 0)
    running.submit([stops, goes_on, has_enough, only_scored])
    heard = [request.listener for request in (stops, goes_on, has_enough, only_scored)]
    assert [one.ids for one in heard] == [free[: free.index(end)], free, free[:2], []]  # type: ignore[attr-defined]
    assert [one.reason for one in heard] == ["stop", "length", "stop", "length"]  # type: ignore[attr-defined]
    assert heard[0].last.id == end  # type: ignore[attr-defined]
    assert heard[0].last.logprob < 0  # type: ignore[attr-defined]


def test_places_are_bounded_and_one_that_is_cancelled_is_free(engine) -> None:
    running = engine(make_model(), max_batch=2, max_waiting=3)
    slow = [ask([1], 10**6, Heard(waits=0.001)) for _ in range(2)]
    running.submit(slow)
    while running.load.running < 2:
        time.sleep(0.001)
    waiting = [ask([2], 3) for _ in range(3)]
    running.submit(waiting)
    with pytest.raises(BusyError, match="1 more would wait beside 3, and 3 may"):
        running.submit([ask([3], 3)])
    slow[0].cancelled = waiting[1].cancelled = True
    assert len(waiting[0].listener.ids) == 3  # type: ignore[attr-defined]
    assert len(waiting[2].listener.ids) == 3  # type: ignore[attr-defined]
    assert waiting[1].listener.ids == []  # type: ignore[attr-defined]
    assert [slow[0].listener.reason, waiting[1].listener.reason] == ["cancelled"] * 2  # type: ignore[attr-defined]
    running.close()
    assert slow[1].listener.reason == "cancelled"  # type: ignore[attr-defined]
    with pytest.raises(BusyError):
        running.submit([ask([3], 3)])


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_taken(engine) -> None:
    running = engine(make_model())
    for prompt, count in (([], "0"), ([1] * 25, "25")):
        with pytest.raises(GptlabError, match=f"has {count} tokens, and the model sees from 1 to 24"):
            running.submit([ask([1], 1), ask(prompt, 1)])
    assert running.load.waiting == running.load.tokens == 0


def test_a_defect_ends_those_who_are_there_and_nobody_else(engine, capsys) -> None:
    model = make_model()
    running = engine(model)
    plain, broken = model.logits, threading.Event()

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        if broken.is_set():
            broken.clear()
            raise MemoryError("no memory")
        return plain(hidden)

    model.logits = logits  # type: ignore[method-assign, assignment]
    broken.set()
    first = ask([1, 2], 5)
    running.submit([first])
    assert first.listener.ids == []  # type: ignore[attr-defined]
    assert first.listener.reason == "error: MemoryError: no memory"  # type: ignore[attr-defined]
    second = ask([1, 2], 5)
    running.submit([second])
    assert len(second.listener.ids) == 5  # type: ignore[attr-defined]
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    third = ask([1, 2], 5)
    running.submit([third])
    assert third.listener.ids == []  # type: ignore[attr-defined]
    assert "not numbers" in third.listener.reason  # type: ignore[attr-defined]


def test_an_idle_cache_holds_nothing_and_a_busy_one_no_more_than_its_rows_need() -> None:
    cache, read = RowCache(1), KVCache(1, 10)
    rows = torch.randn(1, 2, 10, 4)
    read.update(0, rows, rows)
    read.advance(10)
    cache.join(read)
    for number in range(5000):  # rows come and go, and none is longer than 20
        cache.update(0, torch.randn(len(cache.lengths), 2, 1, 4), torch.randn(len(cache.lengths), 2, 1, 4))
        cache.advance(1)
        if number % 9 == 0:
            cache.join(read)
            cache.leave(0)
    held = cache._keys[0]
    assert held is not None
    assert held.shape == (2, 2, 128, 4)
    while cache.lengths:
        cache.leave(0)
    assert cache._keys == [None]
