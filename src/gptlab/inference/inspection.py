"""A look inside a model that reads a text: every tensor of the pass, who attends to whom, what each token cost.

All of it is read from one ordinary forward pass, by hooks and by the kernel of attention: a part of one's own shows
itself without a line more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gptlab.errors import GptlabError
from gptlab.inference.scoring import token_nats
from gptlab.model.backends import Scores, View, explicit_attention, override
from gptlab.shown import Marked, Sheet, Shown
from gptlab.tokenizer import Tokenizer


@dataclass(frozen=True)
class TensorRow:
    """What a module returned: its path, class and shape, and the mean, standard deviation and largest magnitude."""

    path: str
    kind: str
    shape: tuple[int, ...]
    mean: float
    std: float
    largest: float


@dataclass(frozen=True, repr=False)
class Tensors(Shown):
    """Every tensor of a forward pass, in the order in which the modules ended; `tokens` were read."""

    tokens: int
    rows: tuple[TensorRow, ...]

    def sheet(self) -> Sheet:
        """A row a module."""
        header = ("module", "class", "shape", "mean", "std", "largest")
        found = [
            [row.path or "(model)", row.kind, " × ".join(map(str, row.shape)), *_numbers(row)] for row in self.rows
        ]
        return Sheet(f"{len(self.rows)} tensors of a pass over {self.tokens} tokens", found, header, left=3)


def _numbers(row: TensorRow) -> list[str]:
    return [f"{value:.3g}" for value in (row.mean, row.std, row.largest)]


@torch.no_grad()
def read_tensors(model: nn.Module, ids: Sequence[int]) -> Tensors:
    """What every module of `model` makes of the tokens `ids` (one row), logits last. Modules that hand on what they are
    given, as dropout does after training, make nothing."""
    rows: list[TensorRow] = []

    def keep(path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
            if isinstance(result, Tensor) and result.data_ptr() not in {
                x.data_ptr() for x in inputs if isinstance(x, Tensor)
            }:
                x = result.float()
                numbers = (float(x.mean()), float(x.std(correction=0)), float(x.abs().max()))
                rows.append(TensorRow(path, type(module).__name__, tuple(result.shape), *numbers))

        return hook

    handles = [module.register_forward_hook(keep(path)) for path, module in model.named_modules()]
    try:
        model(_row_of(model, ids), return_logits=True)
    finally:
        for handle in handles:
            handle.remove()
    return Tensors(len(ids), tuple(rows))


@torch.no_grad()
def read_attention(model: nn.Module, ids: Sequence[int]) -> Tensor:
    """How much each token attends to each: (L, H, T, T), float32 on the CPU; a row (a query) sums to 1.

    With windows, soft-caps and slopes as the model has them: the weights are what its own scores give on values that
    are the rows of the identity. Raises GptlabError where no layer's attention goes through
    `gptlab.model.backends.attend`, or layers differ in their number of heads.
    """
    found: list[Tensor] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, view: View, scores: Scores, dropout: float) -> Tensor:
        keys = k.shape[-2]
        identity = torch.eye(keys, device=v.device).expand(*k.shape[:2], keys, keys)
        found.append(explicit_attention(q.float(), k.float(), identity, view, scores, 0.0)[0].cpu())
        return explicit_attention(q, k, v, view, scores, dropout)

    with override(kernel):
        model(_row_of(model, ids))
    if not found or len({weights.shape for weights in found}) > 1:
        what = (
            "has no layer whose attention calls `attend`" if not found else "has layers of different numbers of heads"
        )
        raise GptlabError(f"{type(model).__name__} {what}: there is no table of who attends to whom; look at one layer")
    return torch.stack(found)


@dataclass(frozen=True)
class TokenLosses:
    """What each token of a text cost a model. In a notebook the text, the darker the dearer.

    Attributes:
        ids, nats: the tokens, and −log p of each given those before it, nats.
        pieces: the bytes that each stands for.
    """

    ids: tuple[int, ...]
    nats: tuple[float, ...]
    pieces: tuple[bytes, ...]

    @property
    def marked(self) -> Marked:
        """The text, with a mark on each token: as dark as 10 nats, or 1 in 22,000, are black."""
        shown = zip(_characters(self.pieces), self.nats, strict=True)
        return Marked([(text, nats / 10, f"{nats:.2f} nats") for text, nats in shown], hue=2)

    def __repr__(self) -> str:
        shown = zip(_characters(self.pieces), self.nats, strict=True)
        return " ".join(f"{text!r} {nats:.2f}" for text, nats in shown)

    def _repr_html_(self) -> str:
        return self.marked._repr_html_()


def read_losses(model: nn.Module, tokenizer: Tokenizer, ids: Sequence[int]) -> TokenLosses:
    """What each of `ids` but the first cost, in windows of the model's context that each start where the last ended."""
    length, found = model.context_length, []
    with torch.no_grad():
        for start in range(0, len(ids) - 1, length):
            window = _row_of(model, ids[start : start + length + 1])
            found += token_nats(model, window[:, :-1], window[:, 1:])[0].tolist()
    pieces = tokenizer.token_bytes()
    return TokenLosses(tuple(ids[1:]), tuple(found), tuple(pieces[token] for token in ids[1:]))


def mark_tokens(tokenizer: Tokenizer, text: str) -> Marked:
    """`text` with a colour for each token, and its id for whoever points at it: for a notebook."""
    pieces = tokenizer.pieces(text)
    shown = _characters([piece for _, piece in pieces])
    return Marked([(piece, 0.45, f"{token}") for piece, (token, _) in zip(shown, pieces, strict=True)])


def _characters(pieces: Sequence[bytes]) -> list[str]:
    """Each token's text; a character of several tokens stands with the last of them."""
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [decoder.decode(piece) for piece in pieces]


def _row_of(model: nn.Module, ids: Sequence[int]) -> Tensor:
    """(1, T) on the model's device. Raises GptlabError for an empty text."""
    if not ids:
        raise GptlabError("there is no token to look at; give a text")
    return torch.tensor([list(ids)], device=next(model.parameters()).device)
