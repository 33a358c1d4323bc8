"""Generation: cache, padding and window make no difference; sampling does what it says."""

from __future__ import annotations

import pytest
import torch

from gptlab.config import config_from
from gptlab.errors import GptlabError
from gptlab.inference.cache import KVCache
from gptlab.inference.decoder import window_start
from gptlab.inference.generate import Sampling, decoding_copy, generate, sample_token
from gptlab.model import build_model

CPU = torch.device("cpu")
VARIANTS = {
    "rope": {},
    "learned": {"position": "Learned"},
    "grouped queries and QK-norm": {"block": {"attention": {"kv_heads": 2, "qk_norm": "RMSNorm"}}},
    "odd context": {"context_length": 13},
}


def make_model(**changes: object) -> torch.nn.Module:
    """A model whose logits differ enough that rounding cannot change which is the largest."""
    values = {
        "model": {"dim": 32, "layers": 2, "heads": 4, "context_length": 16, **changes},
        "train": {"sequence_length": 8},
    }
    config = config_from(values, ["model.initialization.std=0.4", "model.tied=false"])
    return build_model(config, 61).eval()


def greedy(model: torch.nn.Module, prompts: list[list[int]], **options: bool) -> list[list[int]]:
    sampling = Sampling(max_new_tokens=40, temperature=0, stop_at_end=False)
    return generate(model, prompts, sampling, stop_ids=(), device=CPU, **options)


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_equals_uncached_equals_batched_past_the_window(name: str) -> None:
    model = make_model(**VARIANTS[name])
    prompts = [[1, 2, 3], [7] * 11, [5, 9, 4, 4, 30, 2, 60], list(range(30))]  # the last outgrows the window at once
    alone = [greedy(model, [prompt])[0] for prompt in prompts]
    assert [greedy(model, [prompt], use_cache=False)[0] for prompt in prompts] == alone
    assert greedy(model, prompts) == alone
    assert greedy(model, prompts, use_cache=False) == alone
    assert len({tuple(row) for row in alone}) == len(prompts)
    assert max(len(set(row)) for row in alone) > 3  # and not one token over and over


def test_cached_logits_equal_a_plain_forward_pass() -> None:
    model = make_model()
    ids = torch.randint(61, (1, 12))
    tokens = greedy(model, [ids[0].tolist()])[0][:4]
    with torch.no_grad():
        text = torch.cat([ids, torch.tensor([tokens])], dim=1)
        expected = model(text, return_logits=True)[0, 11:15].argmax(-1).tolist()
    assert tokens == expected


def test_the_decoding_copy_computes_the_same_and_leaves_the_model_alone() -> None:
    model = make_model()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    twin = decoding_copy(model, CPU, torch.float32)
    ids = torch.randint(61, (2, 12))
    with torch.no_grad():
        torch.testing.assert_close(twin(ids, return_logits=True), model(ids, return_logits=True), rtol=1e-5, atol=1e-5)
    assert twin.embedding.weight is model.embedding.weight
    assert model.head.weight.is_contiguous()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_window_start_is_steady_and_never_too_wide() -> None:
    starts = [window_start(n, 16) for n in range(1, 100)]
    assert all(0 < n - start <= 16 for n, start in enumerate(starts, start=1))
    assert starts == sorted(starts)
    assert len(set(starts)) == 12  # a step of half a context


def test_top_k_yields_at_most_k_tokens() -> None:
    torch.manual_seed(0)
    logits = torch.randn(50)
    logits[10:20] = logits.max()  # ties must not let more through
    generator = torch.Generator().manual_seed(0)
    drawn = {int(sample_token(logits[None], Sampling(top_k=3), generator)) for _ in range(1000)}
    assert len(drawn) == 3


def test_top_k_through_generate() -> None:
    model = make_model()
    sampling = Sampling(max_new_tokens=1, top_k=3, seed=0, stop_at_end=False)
    rows = generate(model, [[1, 2, 3]] * 1000, sampling, stop_ids=(), device=CPU)
    assert len({row[0] for row in rows}) == 3


def test_top_p_keeps_the_fewest_that_reach_p() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    generator = torch.Generator().manual_seed(0)

    def support(**options: float) -> set[int]:
        return {int(sample_token(logits, Sampling(**options), generator)) for _ in range(400)}

    assert support(top_p=0.5) == {0}
    assert support(top_p=0.51) == {0, 1}
    assert support(top_p=0.96) == {0, 1, 2, 3}
    assert support(min_p=0.29) == {0, 1, 2}
    assert support(top_k=3, top_p=0.6) == {0, 1}
    assert support(top_k=4, top_p=0.6) == {0, 1}
    assert support(temperature=0) == {0}


def test_the_likeliest_token_stays_however_small_p_is() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert int(sample_token(logits, Sampling(top_p=1e-300))) == 1  # 0 in float32


def test_draws_follow_the_distribution() -> None:
    probability = torch.tensor([0.5, 0.3, 0.15, 0.05])
    generator = torch.Generator().manual_seed(0)
    drawn = sample_token(probability.log().expand(20000, 4), Sampling(), generator)
    share = torch.bincount(drawn, minlength=4) / 20000
    assert (share - probability).abs().max() < 0.015


def test_a_seed_repeats_and_none_does_not() -> None:
    model = make_model()

    def draw(seed: int | None) -> list[list[int]]:
        sampling = Sampling(max_new_tokens=20, seed=seed, stop_at_end=False)
        return generate(model, [[1]], sampling, stop_ids=(), device=CPU)

    assert draw(5) == draw(5) != draw(6)
    assert draw(None) != draw(None)


def test_stops_at_end_of_text() -> None:
    model = make_model()
    free = greedy(model, [[1, 2, 3]])[0]
    end = free[5]
    sampling = Sampling(max_new_tokens=40, temperature=0)
    stopped = generate(model, [[1, 2, 3], [7] * 11], sampling, stop_ids=[end], device=CPU)
    assert stopped[0] == free[: free.index(end)]


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -1.0},
        {"temperature": -1},
        {"max_new_tokens": 0},
        {"temperature": 1e-320},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"seed": 2**64},
        {"seed": -(2**63) - 1},
    ],
)
def test_bad_sampling_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(GptlabError, match=next(iter(options))):
        Sampling(**options)


def test_a_top_k_that_the_vocabulary_does_not_have_is_refused() -> None:
    sampling = Sampling(max_new_tokens=1, top_k=62, stop_at_end=False)
    with pytest.raises(GptlabError, match="top_k is 62, and the vocabulary has 61 tokens"):
        generate(make_model(), [[1]], sampling, stop_ids=(), device=CPU)
    every = Sampling(max_new_tokens=1, top_k=61, temperature=1e-6, seed=2**64 - 1, stop_at_end=False)
    assert len(generate(make_model(), [[1]], every, stop_ids=(), device=CPU)[0]) == 1


def test_no_prompts_have_no_continuations() -> None:
    assert greedy(make_model(), []) == []


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(GptlabError, match="empty"):
        greedy(make_model(), [[]])


def test_the_cache_grows_with_the_text_and_not_with_the_context() -> None:
    cache = KVCache(1, 100_000)
    rows = torch.randn(2, 3, 1300, 4)
    for start, stop in ((0, 5), (5, 600), (600, 601), (601, 1300)):
        keys, values = cache.update(0, rows[:, :, start:stop], -rows[:, :, start:stop, :2])
        cache.advance(stop - start)
        assert torch.equal(keys, rows[:, :, :stop])
        assert torch.equal(values, -rows[:, :, :stop, :2])
    held = cache._keys[0]
    assert held is not None
    assert held.shape[2] == 2048
    small = KVCache(1, 40)
    small.update(0, rows[:, :, :40], rows[:, :, :40])
    assert small._keys[0] is not None
    assert small._keys[0].shape[2] == 40
