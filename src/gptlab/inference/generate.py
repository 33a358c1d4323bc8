"""Generation: several prompts at once, one token a row at a time.

A model sees at most `context_length` tokens. When a text outgrows that, the window's start moves on by half a context,
so that the cache is rebuilt once in half a context of tokens and not at each. Where the window starts is a function of
the text's length alone: with cache, without, alone or in a batch, a text gets the same logits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptlab.errors import GptlabError, option
from gptlab.inference.cache import KVCache
from gptlab.inference.packing import packed_copy
from gptlab.inference.quantization import QuantizedLinear

_COLDEST = 1e-6
"""The lowest temperature above 0: logits over less than this may leave the range of float32."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to stop.

    `temperature` 0 takes the likeliest token. Of the rest of the distribution, `top_k` keeps the k likeliest; `top_p`
    the fewest whose probabilities reach p (Holtzman et al. 2020, arXiv:1904.09751); `min_p` those at least min_p times
    as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082). They act in that order. `seed` None draws anew
    each time. Raises GptlabError for values outside their range.
    """

    max_new_tokens: int = 100
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop_at_end: bool = True

    def __post_init__(self) -> None:
        known = self.temperature == 0 or _COLDEST <= self.temperature < math.inf
        ranges = {
            "max_new_tokens": ("at least 1", self.max_new_tokens >= 1),
            "temperature": (f"0, or from {_COLDEST} on", known),
            "top_k": ("at least 1", self.top_k is None or self.top_k >= 1),
            "top_p": ("above 0 and at most 1", self.top_p is None or 0 < self.top_p <= 1),
            "min_p": ("from 0 to 1", self.min_p is None or 0 <= self.min_p <= 1),
            "seed": ("from -2^63 to 2^64 - 1", self.seed is None or -(2**63) <= self.seed < 2**64),
        }
        for name, (range_, kept) in ranges.items():
            if not kept:
                raise GptlabError(f"{option(name)} must be {range_} (given: {getattr(self, name)})")


def sample_token(logits_BV: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """The next token of each row: (B, V) → (B,)."""
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


def window_start(length: int, context_length: int) -> int:
    """Where the visible window of a text of `length` tokens begins."""
    step = max(1, context_length // 2)
    return max(0, -(-(length - context_length) // step) * step)


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
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


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

    Raises GptlabError for a prompt without tokens, or a top_k that the vocabulary does not have.
    """
    if not prompts:
        return
    if sampling.top_k is not None and sampling.top_k > model.vocab_size:
        raise GptlabError(
            f"{option('top_k')} is {sampling.top_k}, and the vocabulary has {model.vocab_size} tokens; leave it out to "
            "keep all"
        )
    if any(not prompt for prompt in prompts):
        raise GptlabError("a prompt is empty; give at least one token (or text)")
    model.eval()
    generator = None
    if sampling.temperature > 0:
        generator = torch.Generator(device)
        _ = generator.seed() if sampling.seed is None else generator.manual_seed(sampling.seed)
    decoder = Decoder(model, [list(prompt) for prompt in prompts], device, use_cache)
    ended = [False] * len(prompts)
    for _ in range(sampling.max_new_tokens):
        tokens = sample_token(decoder.next_logits(), sampling, generator).tolist()
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
    """The continuations of `prompts`, prompts and what ended them left out."""
    rows: list[list[int]] = [[] for _ in prompts]
    for tokens in stream_tokens(model, prompts, sampling, stop_ids=stop_ids, device=device, use_cache=use_cache):
        for row, token in zip(rows, tokens, strict=True):
            if token is not None:
                row.append(token)
    return rows


class Decoder:
    """Feeds the model what it has not read yet, and gives the logits that follow."""

    def __init__(self, model: nn.Module, rows: list[list[int]], device: torch.device, use_cache: bool) -> None:
        self.model, self.rows, self.device, self.use_cache = model, rows, device, use_cache
        self.context: int = model.context_length
        self.cache: KVCache | None = None
        self.starts: list[int] = []

    def append(self, tokens: list[int]) -> None:
        """One more token for each row."""
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)

    def next_logits(self) -> Tensor:
        """Logits of the token after each row: (B, V)."""
        starts = [window_start(len(row), self.context) for row in self.rows]
        if self.cache is not None and self.use_cache and starts == self.starts:
            ids = torch.tensor([row[-1:] for row in self.rows], device=self.device)
        else:
            windows = [row[start:] for row, start in zip(self.rows, starts, strict=True)]
            width = max(map(len, windows))
            padding = [width - len(window) for window in windows]
            pads = torch.tensor(padding, device=self.device) if any(padding) else None
            self.cache = KVCache(len(self.model.blocks), self.context, pads, device=self.device)
            self.starts = starts
            # The id of a padding position does not matter; 0 always exists.
            ids = torch.tensor([[0] * n + w for n, w in zip(padding, windows, strict=True)], device=self.device)
        hidden = self.model(ids, cache=self.cache)
        self.cache.advance(ids.shape[1])
        return self.model.logits(hidden[:, -1])
