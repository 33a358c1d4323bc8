"""Generation: several prompts at once, one token a row at a time; or the likeliest text, by beams."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptlab.errors import GptlabError, option
from gptlab.inference.beams import beam_search
from gptlab.inference.decoder import Decoder, penalized
from gptlab.inference.packing import packed_copy, shared_copy
from gptlab.inference.quantization import QuantizedLinear

_COLDEST = 1e-6
"""The lowest temperature above 0: logits over less than this may leave the range of float32."""

MOST_BEAMS = 1024
"""Of one text: as many rows of the cache."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to stop.

    `temperature` 0 takes the likeliest token. Of the rest of the distribution, `top_k` keeps the k likeliest; `top_p`
    the fewest whose probabilities reach p (Holtzman et al. 2020, arXiv:1904.09751); `min_p` those at least min_p times
    as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082). They act in that order. `seed` None draws anew
    each time.

    Before all that, `repetition_penalty` makes the tokens that a text has, its prompt included, less likely, 1 leaves
    them (`gptlab.inference.decoder.penalized`). With `beams` of 2 or more nothing is drawn: the likeliest of the texts
    that so many beams come by is taken (`gptlab.inference.beams`); `temperature` is 0 then.

    Raises GptlabError for values outside their range, or that do not go together.
    """

    max_new_tokens: int = 100
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop_at_end: bool = True
    repetition_penalty: float = 1.0
    beams: int = 1

    def __post_init__(self) -> None:
        known = self.temperature == 0 or _COLDEST <= self.temperature < math.inf
        ranges = {
            "max_new_tokens": ("at least 1", self.max_new_tokens >= 1),
            "temperature": (f"0, or from {_COLDEST} on", known),
            "top_k": ("at least 1", self.top_k is None or self.top_k >= 1),
            "top_p": ("above 0 and at most 1", self.top_p is None or 0 < self.top_p <= 1),
            "min_p": ("from 0 to 1", self.min_p is None or 0 <= self.min_p <= 1),
            "seed": ("from -2^63 to 2^64 - 1", self.seed is None or -(2**63) <= self.seed < 2**64),
            "repetition_penalty": ("from 0.01 to 100", 0.01 <= self.repetition_penalty <= 100),
            "beams": (f"from 1 to {MOST_BEAMS}", 1 <= self.beams <= MOST_BEAMS),
        }
        for name, (range_, kept) in ranges.items():
            if not kept:
                raise GptlabError(f"{option(name)} must be {range_} (given: {getattr(self, name)})")
        if self.beams > 1:
            self._check_beams()

    def _check_beams(self) -> None:
        drawn = {"temperature": self.temperature or None}
        drawn |= {name: getattr(self, name) for name in ("top_k", "top_p", "min_p", "seed")}
        wrong = next((name for name, value in drawn.items() if value is not None), None)
        if wrong is not None:
            raise GptlabError(
                f"{option('beams', self.beams)} draws nothing, and {option(wrong, drawn[wrong])} is for draws; leave "
                "one of them out"
            )

    @property
    def penalizes(self) -> bool:
        """Whether what a text has is to count against it."""
        return self.repetition_penalty != 1


def sample_token(
    logits_BV: Tensor, sampling: Sampling, generator: torch.Generator | None = None, seen_BV: Tensor | None = None
) -> Tensor:
    """The next token of each row: (B, V) → (B,). `seen_BV`: True for the tokens that a row has, where there is a
    penalty for them."""
    if seen_BV is not None:
        logits_BV = penalized(logits_BV, seen_BV, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    scaled = logits_BV.float() / sampling.temperature
    order = None
    if sampling.top_k is not None and sampling.top_k < scaled.shape[-1]:
        scaled, order = scaled.topk(sampling.top_k, dim=-1)  # exactly k, whatever ties there are
    elif sampling.top_p is not None:
        scaled, order = scaled.sort(dim=-1, descending=True)
    probability = scaled.softmax(-1)
    if sampling.top_p is not None:
        if order is None:  # top_k as large as the vocabulary left the order alone
            probability, order = probability.sort(dim=-1, descending=True)
        before = probability.cumsum(-1) - probability
        beyond = (before >= sampling.top_p) & (before > 0)  # the likeliest stays, however small p is in float32
        probability = probability.masked_fill(beyond, 0.0)
    if sampling.min_p is not None:
        floor = sampling.min_p * probability.amax(-1, keepdim=True)
        probability = probability.masked_fill(probability < floor, 0.0)
    drawn = torch.multinomial(probability, 1, generator=generator)
    return (drawn if order is None else order.gather(-1, drawn)).squeeze(-1)


def decoding_copy(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """`model` as generation reads it fastest. It computes the same numbers (in `dtype`, on a GPU).

    A token costs one reading of all weights and little else. On a GPU they are therefore kept in the run's precision.
    On a CPU they stay float32, and matrices are packed for its kernels (`gptlab.inference.packing`); matrices in int8
    are read as they are, by a kernel of torch's. Embeddings and gains are shared with `model`; packed matrices take
    memory again. A copy is not compiled.
    """
    if device.type == "cuda" and dtype != torch.float32:
        return copy.deepcopy(model).to(dtype)
    if device.type == "cpu":
        twin = packed_copy(model, torch.float32)
        for module in twin.modules():
            if isinstance(module, QuantizedLinear):
                module.use_kernel()
        return twin
    return shared_copy(model)


@torch.inference_mode()
def stream_tokens(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: Collection[int],
    device: torch.device,
    use_cache: bool = True,
) -> Iterator[list[int | None]]:
    """Yield, a step at a time, the new token of each row (None for rows that have ended). Stops when all have.

    Raises GptlabError for a prompt without tokens, a top_k that the vocabulary does not have, or beams, whose text is
    known at the end alone.
    """
    if sampling.beams > 1:
        raise GptlabError(
            f"{option('beams', sampling.beams)}: which text is the likeliest is known at the end, so it cannot come "
            "token by token; leave it out"
        )
    if not prompts:
        return
    if sampling.top_k is not None and sampling.top_k > model.vocab_size:
        raise GptlabError(
            f"{option('top_k')} is {sampling.top_k}, and the vocabulary has {model.vocab_size} tokens; leave it out to "
            "keep all"
        )
    _check_prompts(prompts)
    model.eval()
    generator = None
    if sampling.temperature > 0:
        generator = torch.Generator(device)
        _ = generator.seed() if sampling.seed is None else generator.manual_seed(sampling.seed)
    rows = [list(prompt) for prompt in prompts]
    decoder = Decoder(model, rows, device, use_cache, remember=sampling.penalizes)
    ended = [False] * len(prompts)
    for _ in range(sampling.max_new_tokens):
        tokens = sample_token(decoder.next_logits(), sampling, generator, decoder.seen).tolist()
        decoder.append(tokens)
        ended = [e or (sampling.stop_at_end and t in stop_ids) for e, t in zip(ended, tokens, strict=True)]
        yield [None if e else t for e, t in zip(ended, tokens, strict=True)]
        if all(ended):
            return


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: Collection[int],
    device: torch.device,
    use_cache: bool = True,
) -> list[list[int]]:
    """The continuations of `prompts`, prompts and what ended them left out. Raises as `stream_tokens`, and GptlabError
    for more beams than the vocabulary has tokens for."""
    if sampling.beams > 1:
        _check_prompts(prompts)
        return beam_search(
            model,
            prompts,
            beams=sampling.beams,
            new_tokens=sampling.max_new_tokens,
            ends=stop_ids if sampling.stop_at_end else (),
            penalty=sampling.repetition_penalty,
            device=device,
            use_cache=use_cache,
        )
    rows: list[list[int]] = [[] for _ in prompts]
    for tokens in stream_tokens(model, prompts, sampling, stop_ids=stop_ids, device=device, use_cache=use_cache):
        for row, token in zip(rows, tokens, strict=True):
            if token is not None:
                row.append(token)
    return rows


def _check_prompts(prompts: Sequence[Sequence[int]]) -> None:
    if any(not prompt for prompt in prompts):
        raise GptlabError("a prompt is empty; give at least one token (or text)")
