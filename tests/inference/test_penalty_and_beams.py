"""The penalty for repetition and beam search are transformers', on a model of the same weights."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import nn

from gptlab.errors import GptlabError
from gptlab.inference.beams import beam_search
from gptlab.inference.decoder import penalized, seen_tokens
from gptlab.inference.generate import Sampling, generate, sample_token, stream_tokens
from gptlab.interop.gpt2 import from_gpt2, gpt2_config
from gptlab.model import build_model

CPU = torch.device("cpu")
V, CONTEXT = 67, 64
PROMPTS = [[1, 2, 3], [7] * 11, [5, 9, 4, 4, 30, 2, 60], list(range(13)), [8], [50, 3]]


@functools.cache
def pair() -> tuple[nn.Module, Any]:
    """A small model of ours and transformers' GPT-2 with the same weights, wild enough to have opinions."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": CONTEXT, "vocab_size": V}
    config = transformers.GPT2Config(**sizes, initializer_range=0.25, bos_token_id=None, eos_token_id=None)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    ours = build_model(gpt2_config(dim=32, layers=2, heads=4, context_length=CONTEXT), V).eval()
    converted = from_gpt2(theirs.state_dict(), conv1d=True)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(converted[name])
    return ours, theirs


def theirs_says(prompt: list[int], length: int, *, end: int | None = None, **options: Any) -> list[int]:
    _, model = pair()
    ids = torch.tensor([prompt])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=0,
        **options,
    )[0, len(prompt) :].tolist()
    return found[: found.index(end)] if end in found else found


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.2, 3.0])
def test_penalized_logits_are_those_of_transformers_row_by_row(penalty: float) -> None:
    transformers = pytest.importorskip("transformers")
    process = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    logits = torch.randn(len(PROMPTS), V, generator=torch.Generator().manual_seed(0)) * 3
    found = penalized(logits, seen_tokens(PROMPTS, V, CPU), penalty)
    for row, prompt in enumerate(PROMPTS):
        assert torch.equal(found[row], process(torch.tensor([prompt]), logits[row : row + 1].clone())[0])


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.3, 2.5])
def test_a_penalized_text_is_that_of_transformers_alone_and_in_a_batch(penalty: float) -> None:
    ours, _ = pair()
    sampling = Sampling(40, 0.0, stop_at_end=False, repetition_penalty=penalty)
    expected = [theirs_says(prompt, 40, repetition_penalty=penalty) for prompt in PROMPTS]
    assert generate(ours, PROMPTS, sampling, stop_ids=(), device=CPU) == expected
    assert generate(ours, PROMPTS, sampling, stop_ids=(), device=CPU, use_cache=False) == expected
    assert [generate(ours, [one], sampling, stop_ids=(), device=CPU)[0] for one in PROMPTS] == expected


def test_a_penalty_changes_texts_and_none_changes_nothing() -> None:
    ours, _ = pair()

    def say(**options: Any) -> list[list[int]]:
        return generate(ours, PROMPTS, Sampling(30, seed=1, stop_at_end=False, **options), stop_ids=(), device=CPU)

    assert say(repetition_penalty=1.0) == say()
    assert say(repetition_penalty=1.5) != say()
    sampling = Sampling(10, 0.0, stop_at_end=False, repetition_penalty=100.0)
    strong = generate(ours, PROMPTS, sampling, stop_ids=(), device=CPU)
    assert all(len({*prompt, *row}) == len(set(prompt)) + 10 for prompt, row in zip(PROMPTS, strong, strict=True))
    logits = torch.randn(2, V)
    assert torch.equal(sample_token(logits, Sampling(temperature=0)), logits.argmax(-1))


@pytest.mark.parametrize("beams", [2, 4, 7])
@pytest.mark.parametrize("length", [1, 2, 9, 33])
def test_beams_find_what_transformers_finds(beams: int, length: int) -> None:
    ours, _ = pair()
    sampling = Sampling(length, 0.0, beams=beams)
    expected = [theirs_says(prompt, length, num_beams=beams) for prompt in PROMPTS]
    assert generate(ours, PROMPTS, sampling, stop_ids=(), device=CPU) == expected
    assert generate(ours, PROMPTS[2:3], sampling, stop_ids=(), device=CPU, use_cache=False) == expected[2:3]
    assert generate(ours, PROMPTS, sampling, stop_ids=[V + 5], device=CPU) == expected  # an end that is no token


def test_beams_end_where_those_of_transformers_do() -> None:
    ours, _ = pair()
    free = generate(ours, PROMPTS, Sampling(25, 0.0, beams=4), stop_ids=(), device=CPU)
    wanted = sorted({row[place] for row in free for place in (0, 2, 7, 15)})
    lengths: list[int] = []
    for end in wanted:
        for beams, length in ((2, 6), (4, 25)):
            sampling = Sampling(length, 0.0, beams=beams)
            expected = [theirs_says(prompt, length, num_beams=beams, end=end) for prompt in PROMPTS]
            assert generate(ours, PROMPTS, sampling, stop_ids=[end], device=CPU) == expected
            lengths += [len(row) for row in expected if length == 25]
    assert len(set(lengths)) > 8  # some soon, some later, some never
    assert 25 in lengths


def test_two_ends_and_a_penalty_are_as_in_transformers() -> None:
    ours, theirs = pair()
    for penalty, ends in ((1.3, [4]), (1.0, [4, 11]), (0.8, [20, 33])):
        sampling = Sampling(20, 0.0, beams=3, repetition_penalty=penalty)
        expected = []
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            options: dict[str, Any] = {"num_beams": 3, "eos_token_id": ends, "repetition_penalty": penalty}
            options |= {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "do_sample": False}
            row = theirs.generate(ids, max_new_tokens=20, **options)[0, len(prompt) :].tolist()
            expected.append(row[: next((place for place, token in enumerate(row) if token in ends), len(row))])
        assert generate(ours, PROMPTS, sampling, stop_ids=ends, device=CPU) == expected


def test_beams_are_likelier_than_the_greedy_text_and_may_outgrow_the_context() -> None:
    ours, _ = pair()

    def mean_logprob(prompt: list[int], row: list[int]) -> float:
        with torch.no_grad():
            logprobs = ours(torch.tensor([[*prompt, *row]]), return_logits=True)[0].log_softmax(-1)
        return sum(float(logprobs[len(prompt) - 1 + n, token]) for n, token in enumerate(row)) / len(row)

    greedy = generate(ours, PROMPTS, Sampling(12, 0.0), stop_ids=(), device=CPU)
    found = generate(ours, PROMPTS, Sampling(12, 0.0, beams=8), stop_ids=(), device=CPU)
    gains = [mean_logprob(p, f) - mean_logprob(p, g) for p, f, g in zip(PROMPTS, found, greedy, strict=True)]
    assert sum(gains) / len(gains) > 0.1  # a beam may still end up lower than the greedy text
    long = Sampling(CONTEXT + 40, 0.0, beams=3)
    both = [generate(ours, PROMPTS[:2], long, stop_ids=(), device=CPU, use_cache=kept) for kept in (True, False)]
    assert both[0] == both[1]
    assert [len(row) for row in both[0]] == [CONTEXT + 40] * 2


def test_a_prompt_is_read_once_for_all_its_beams_and_all_its_copies() -> None:
    ours, _ = pair()
    read: list[torch.Size] = []
    handle = ours.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].shape))
    try:
        generate(ours, PROMPTS[1:2], Sampling(3, 0.0, beams=5), stop_ids=(), device=CPU)
        assert read == [(1, 11), (5, 1), (5, 1)]
        read.clear()
        generate(ours, PROMPTS[1:2] * 4, Sampling(3, stop_at_end=False), stop_ids=(), device=CPU)
        assert read == [(1, 11), (4, 1), (4, 1)]
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetition_penalty": 0.0}, "repetition_penalty must be from 0.01 to 100"),
        ({"repetition_penalty": -1.0}, "repetition_penalty must be"),
        ({"repetition_penalty": math.nan}, "repetition_penalty must be"),
        ({"repetition_penalty": math.inf}, "repetition_penalty must be"),
        ({"beams": 0, "temperature": 0}, "beams must be from 1 to 1024"),
        ({"beams": 10**9, "temperature": 0}, "beams must be from 1 to 1024"),
        ({"beams": 4}, "beams=4 draws nothing, and temperature=1 is for draws; leave one of them out"),
        ({"beams": 4, "temperature": 0, "top_k": 3}, "beams=4 draws nothing, and top_k=3"),
        ({"beams": 4, "temperature": 0, "top_p": 0.9}, "top_p"),
        ({"beams": 4, "temperature": 0, "min_p": 0.1}, "min_p"),
        ({"beams": 4, "temperature": 0, "seed": 0}, "seed=0"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GptlabError, match=message):
        Sampling(**options)


def test_beams_are_refused_where_they_cannot_be() -> None:
    ours, _ = pair()
    with pytest.raises(GptlabError, match="known at the end"):
        list(stream_tokens(ours, [[1]], Sampling(3, 0.0, beams=2), stop_ids=(), device=CPU))
    with pytest.raises(GptlabError, match="of a vocabulary of 67 tokens at most 33 beams can be followed"):
        generate(ours, [[1]], Sampling(3, 0.0, beams=34), stop_ids=(), device=CPU)
    with pytest.raises(GptlabError, match="a prompt is empty"):
        generate(ours, [[]], Sampling(3, 0.0, beams=2), stop_ids=(), device=CPU)
    assert generate(ours, [], Sampling(3, 0.0, beams=2), stop_ids=(), device=CPU) == []
    (most,) = beam_search(ours, [[1]], beams=33, new_tokens=5, ends=(), penalty=1.0, device=CPU)
    assert len(most) == 5
