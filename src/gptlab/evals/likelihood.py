"""Likelihoods: how likely a model finds one text after another, many at once.

Every benchmark that asks for probabilities comes here: multiple choice, completion, perplexity, CORE. As
lm-evaluation-harness encodes a pair (version 0.4: `TemplateLM._encode_pair`, `HFLM._loglikelihood_tokens`):

- Context and continuation are encoded as one text; the continuation's tokens are those after as many as the context
  alone has. Blanks at the context's end go to the continuation.
- What does not fit the model's context is cut on the left.

The end-of-text token stands before each context, as before each document in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
from torch import nn

from gptlab.console import track
from gptlab.errors import DataError
from gptlab.evals.journal import Part
from gptlab.hardware.precision import autocast
from gptlab.inference.cache import KVCache
from gptlab.inference.packing import scoring_copy
from gptlab.inference.scoring import target_nats, target_scores
from gptlab.parallel import World
from gptlab.run import Run
from gptlab.tokenizer import Tokenizer

_BATCH_TOKENS = {"cpu": 2**9, "mps": 2**14, "cuda": 2**16}
"""Places of a batch, padding included. A CPU multiplies 512 vectors as fast as more, and pads the less."""

_WORTH_SHARING = 8
"""A beginning of fewer tokens is read again for each continuation: to keep it apart costs a forward pass of its own."""

_LIKE = 4
"""Ends whose lengths differ by less count as equally long when batches are made, so that beginnings are alike too."""


@dataclass(frozen=True)
class EncodedPair:
    """A context with its continuation as ids, cut on the left to fit; the last `count` ids are the continuation."""

    ids: list[int]
    count: int
    truncated: bool


@dataclass(frozen=True)
class Likelihood:
    """What a model makes of a continuation: the sum of log p of its tokens, nats; whether each was the likeliest, None
    where that was not asked."""

    logprob: float
    greedy: bool | None


class PairEncoder:
    """Turns contexts and what follows them, without anything between, into ids. A context that comes again, as a
    question's does for each of its choices, is not encoded again."""

    def __init__(self, tokenizer: Tokenizer, context_length: int) -> None:
        self.tokenizer, self.context_length = tokenizer, context_length
        self._context, self._size = "", 0

    def __call__(self, context: str, continuation: str) -> EncodedPair:
        """Raises DataError where the continuation has no tokens of its own, or more than the model's context."""
        whole = self.tokenizer.encode(context + continuation)
        count = len(whole) - self._tokens(context.rstrip())
        if count < 1 or not continuation.strip():
            raise DataError(f"{continuation.strip()!r} has no tokens of its own; mend the file")
        if count > self.context_length:
            raise DataError(
                f"an answer of {count} tokens does not fit the model's context of {self.context_length}; evaluate a "
                "model with a longer one"
            )
        ids = [self.tokenizer.end_of_text, *whole]
        kept = ids[-(self.context_length + 1) :]  # one more than it sees: the last id is only predicted
        return EncodedPair(kept, count, len(kept) < len(ids))

    def _tokens(self, context: str) -> int:
        if context != self._context:
            self._context, self._size = context, len(self.tokenizer.encode(context))
        return self._size


@torch.inference_mode()
def log_likelihoods(
    run: Run, pairs: Sequence[EncodedPair], *, description: str, world: World | None = None, greedy: bool = False
) -> list[Likelihood]:
    """The likelihood of each continuation given its context, in the order of `pairs`, on every process of `world`;
    with `greedy` also whether greedy decoding says it, which costs a quarter of the head once more.

    Neighbours that begin alike (the choices of a question) share one reading of their beginning. Long ones are computed
    together with long ones. Batches are dealt to the processes in turn, so that each gets long ones and short ones;
    those of an evaluation that was begun before (`gptlab.evals.journal`) are not computed again.
    """
    world = world or World()
    found = torch.zeros(len(pairs), 2, dtype=torch.float64)
    places, length = _BATCH_TOKENS[run.device.type], run.model.context_length
    batches = list(_batches(_families(pairs), pairs, places, length))
    part = Part("likelihoods", greedy, places, length, [[pair.ids, pair.count] for pair in pairs])
    if world.is_main:  # the others' zeros are added to it
        for number, values in part.known.items():
            found[_numbers(batches[number])] = torch.tensor(values, dtype=torch.float64)
    mine = [number for number in range(len(batches)) if number not in part.known][world.rank :: world.size]
    size = lambda number: len(_numbers(batches[number]))  # noqa: E731
    model = scoring_copy(run.model, run.device, run.dtype) if mine else run.model
    for number in track(mine, description, total=sum(map(size, mine)), unit="answers", size=size, shown=world.is_main):
        scores, members = _score(run, model, batches[number], pairs, greedy), _numbers(batches[number])
        found[members] = scores
        part.keep(number, scores.tolist())
    if world.size > 1:
        found = world.all_reduce(found.to(run.device)).cpu()
    return [Likelihood(logprob, bool(hits) if greedy else None) for logprob, hits in found.tolist()]


def _numbers(batch: Sequence[_Family]) -> list[int]:
    """Those of a batch's pairs, in turn."""
    return [member for family in batch for member in family.members]


@dataclass(frozen=True)
class _Family:
    """Numbers of pairs whose first `prefix` ids are the same, and all before what is predicted; 0 for a lone pair."""

    members: tuple[int, ...]
    prefix: int


def _families(pairs: Sequence[EncodedPair]) -> list[_Family]:
    """Neighbours with a common beginning that is worth sharing, the others alone."""
    families: list[_Family] = []
    for number, pair in enumerate(pairs):
        if families:
            last = families[-1]
            first = pairs[last.members[0]]
            known = last.prefix or len(first.ids) - 1 - first.count
            alike = zip(first.ids[: min(known, len(pair.ids) - 1 - pair.count)], pair.ids, strict=False)
            common = sum(1 for _ in takewhile(lambda two: two[0] == two[1], alike))
            # Most of what the others share: a family must not lose a long beginning to a stranger with a short one.
            if common >= max(_WORTH_SHARING, known * 3 // 4):
                families[-1] = _Family((*last.members, number), common)
                continue
        families.append(_Family((number,), 0))
    return [family if len(family.members) > 1 else _Family(family.members, 0) for family in families]


def _batches(
    families: Sequence[_Family], pairs: Sequence[EncodedPair], places: int, context_length: int
) -> Iterator[list[_Family]]:
    """Families of each batch, those with long ends first, and of like ends those with long beginnings.

    A batch has shared beginnings or none; what it reads, padding included, is at most `places` tokens where a family
    alone is not more; and its longest beginning with its longest end, padding of another row, stays in the model's
    context.
    """
    ends = [max(len(pairs[member].ids) for member in family.members) - 1 - family.prefix for family in families]
    batch: list[_Family] = []
    rows = prefix = end = 0
    for number in sorted(
        range(len(families)), key=lambda n: (not families[n].prefix, -(ends[n] // _LIKE), -families[n].prefix)
    ):
        family = families[number]
        prefix, end = max(prefix, family.prefix), max(end, ends[number])
        full = (len(batch) + 1) * prefix + (rows + len(family.members)) * end > places
        if batch and (full or prefix + end > context_length or bool(batch[0].prefix) != bool(family.prefix)):
            yield batch
            batch, rows, prefix, end = [], 0, family.prefix, ends[number]
        batch.append(family)
        rows += len(family.members)
    if batch:
        yield batch


def _score(
    run: Run, model: nn.Module, batch: Sequence[_Family], pairs: Sequence[EncodedPair], greedy: bool
) -> torch.Tensor:
    """log p, and with `greedy` 1 where every token was the likeliest, of the batch's pairs in turn: (N, 2) float64.

    Rows are padded on the right, where causal attention never looks; the head, which is most of a small model, is
    computed only where a continuation is predicted.
    """
    rows = [(pairs[member], family.prefix) for family in batch for member in family.members]
    width = max(len(pair.ids) - prefix for pair, prefix in rows) - 1
    inputs = np.zeros((len(rows), width), dtype=np.int64)  # the id of a padding place does not matter
    places, targets = [], []
    for row, (pair, prefix) in enumerate(rows):
        length = len(pair.ids) - prefix - 1
        inputs[row, :length] = pair.ids[prefix:-1]
        end = row * width + length
        places.append(np.arange(end - pair.count, end))
        targets.extend(pair.ids[-pair.count :])
    where = torch.from_numpy(np.concatenate(places)).to(run.device)
    with autocast(run.device, run.dtype):
        cache = _read_prefixes(model, run.device, batch, pairs, width) if batch[0].prefix else None
        ids = torch.from_numpy(inputs).to(run.device)
        hidden = (model(ids) if cache is None else model(ids, cache=cache)).flatten(0, -2)[where]
        ids = torch.tensor(targets, device=run.device)
        nats, hits = target_scores(model, hidden, ids) if greedy else (target_nats(model, hidden, ids), None)
    starts = np.cumsum([0, *(pair.count for pair, _ in rows[:-1])])
    sums = np.add.reduceat(nats.cpu().numpy().astype(np.float64), starts)
    all_hit = 0 * sums if hits is None else np.minimum.reduceat(hits.cpu().numpy().astype(np.float64), starts)
    return torch.from_numpy(np.stack([-sums, all_hit], axis=1))


def _read_prefixes(
    model: nn.Module, device: torch.device, batch: Sequence[_Family], pairs: Sequence[EncodedPair], width: int
) -> KVCache:
    """Each family's beginning read once, and held for each of its members; `width` more tokens will follow."""
    longest = max(family.prefix for family in batch)
    ids = np.zeros((len(batch), longest), dtype=np.int64)
    for row, family in enumerate(batch):
        ids[row, longest - family.prefix :] = pairs[family.members[0]].ids[: family.prefix]
    padding = torch.tensor([longest - family.prefix for family in batch], device=device)
    same = all(family.prefix == longest for family in batch)
    cache = KVCache(len(model.blocks), longest + width, None if same else padding, device=device)
    model(torch.from_numpy(ids).to(device), cache=cache)
    cache.advance(longest)
    cache.select(torch.tensor([row for row, family in enumerate(batch) for _ in family.members], device=device))
    return cache
