"""Beam search: of the texts that the likeliest beginnings lead to, the one with the highest mean log p a token.

As transformers has it (`num_beams`, with `length_penalty` 1 and `early_stopping` false, their defaults). A step takes
the likeliest continuations of all beams of a prompt together. One that ends is put aside with its score, log p over its
tokens, the end included; only the first `beams` of them may end, and those after them are there so that as many beams
go on. The search for a prompt is over when `beams` texts have ended and the likeliest beam, divided by the length that
it has now, is no better than the worst of them. At the greatest length every beam ends.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gptlab.errors import GptlabError, option
from gptlab.inference.decoder import Decoder, penalized


@dataclass
class _Search:
    """What becomes of one prompt. `ended`: score and tokens of the best texts that did, the best first."""

    beams: int
    ended: list[tuple[float, list[int]]] = field(default_factory=list)

    def end(self, score: float, tokens: list[int]) -> None:
        """Put a text aside, where it is one of the best."""
        self.ended = sorted([*self.ended, (score, tokens)], key=lambda one: -one[0])[: self.beams]

    def is_over(self, best: float) -> bool:
        """Whether no beam can be better any more: the best of them has this score."""
        return len(self.ended) == self.beams and best <= self.ended[-1][0]


@torch.inference_mode()
def beam_search(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    beams: int,
    new_tokens: int,
    ends: Collection[int],
    penalty: float,
    device: torch.device,
    use_cache: bool = True,
) -> list[list[int]]:
    """The continuation of each of `prompts`, without it and without what ended it.

    `beams`: how many beginnings are followed. `new_tokens`: at most so many. `ends`: tokens that end a text. `penalty`:
    the `repetition_penalty`, which acts on log p here, as in transformers; 1 for none.
    Raises GptlabError for more beams than the vocabulary has tokens for.
    """
    vocab = model.vocab_size
    ends = {token for token in ends if token < vocab}
    taken = max(2, 1 + len(ends))
    if beams * taken > vocab:
        raise GptlabError(
            f"{option('beams', beams)}: of a vocabulary of {vocab:,} tokens at most {vocab // taken:,} beams can be "
            "followed; lower it"
        )
    model.eval()
    searches = [_Search(beams) for _ in prompts]
    decoder = Decoder(model, [list(prompt) for prompt in prompts], device, use_cache, remember=penalty != 1)
    going = list(range(len(prompts)))  # the prompts that are searched for, in the order of their beams
    sums = torch.zeros(len(prompts), 1, device=device)  # log p of each beam's new tokens; a prompt is one at first
    for length in range(1, new_tokens + 1):
        if not going:
            break
        logprobs = decoder.next_logits().float().log_softmax(-1)
        if decoder.seen is not None:
            logprobs = penalized(logprobs, decoder.seen, penalty)
        values, places = _likeliest(logprobs, sums, beams * taken)
        width = sums.shape[1]
        left: list[int] = []
        rows: list[int] = []  # of the decoder, that go on
        tokens: list[int] = []  # what they go on with
        kept: list[list[float]] = []
        for place, number in enumerate(going):
            search, alive = searches[number], []
            for rank, (value, found) in enumerate(zip(values[place], places[place], strict=True)):
                beam, token = divmod(found, vocab)
                row = place * width + beam
                if token in ends or length == new_tokens:
                    if rank < beams:
                        last = [] if token in ends else [token]
                        search.end(value / length, [*decoder.rows[row][len(prompts[number]) :], *last])
                elif len(alive) < beams:
                    alive.append((value, row, token))
            if alive and not search.is_over(alive[0][0] / length):
                left.append(number)
                rows += [row for _, row, _ in alive]
                tokens += [token for _, _, token in alive]
                kept.append([value for value, _, _ in alive])
        going = left
        if going:
            decoder.select(rows)
            decoder.append(tokens)
            sums = torch.tensor(kept, device=device)
    return [search.ended[0][1] for search in searches]


def _likeliest(logprobs_BV: Tensor, sums: Tensor, count: int) -> tuple[list[list[float]], list[list[int]]]:
    """For each prompt the `count` likeliest continuations of its beams: log p, and beam × V + token."""
    totals = sums[..., None] + logprobs_BV.view(*sums.shape, -1)
    values, places = totals.flatten(1).topk(count, dim=-1)
    return values.tolist(), places.tolist()
