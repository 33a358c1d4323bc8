"""Loss on held-out text: nats a token, perplexity, and bits a byte, the one that survives a change of tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.data import Batch, TokenDataset
from gptlab.hardware.precision import autocast
from gptlab.loss import IGNORE
from gptlab.parallel import World
from gptlab.shown import Sheet, Shown, cells
from gptlab.tokenizer import Tokenizer

_CHUNK_LOGITS = 2**25


@dataclass(frozen=True, repr=False)
class LossResult(Shown):
    """Sums over the predicted tokens of a text.

    `nats` and `tokens` count every predicted token. `text_nats` and `bytes` leave out predictions of special
    tokens, which stand for no text. `hits`: predicted tokens that were the likeliest; None where that was not asked.
    """

    nats: float
    tokens: int
    text_nats: float
    bytes: int
    hits: int | None = None

    @classmethod
    def sum(cls, results: Iterable[LossResult]) -> LossResult:
        """Of several texts together. `text_nats` and `bytes` are of those whose bytes are known."""
        every = list(results)
        known = [result for result in every if result.bytes]
        hits = [result.hits for result in every if result.hits is not None]
        return cls(
            math.fsum(result.nats for result in every),
            sum(result.tokens for result in every),
            math.fsum(result.text_nats for result in known),
            sum(result.bytes for result in known),
            sum(hits) if len(hits) == len(every) else None,
        )

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats a token."""
        return self.nats / max(1, self.tokens)

    def sheet(self) -> Sheet:
        """Loss, perplexity, bits per byte, and what they are means over."""
        rows = [
            ("loss", f"{self.loss:.4f} nats a token"),
            ("perplexity", f"{self.perplexity:.4g}"),
            ("bits per byte", *cells([self.bits_per_byte])),
            ("of", f"{self.tokens:,} tokens, {self.bytes:,} bytes"),
        ]
        return Sheet("", rows)

    def __float__(self) -> float:
        return self.loss

    @property
    def perplexity(self) -> float:
        """exp(loss)"""
        return math.exp(min(self.loss, 700.0))

    @property
    def accuracy(self) -> float | None:
        """The share of predicted tokens that were the likeliest."""
        return None if self.hits is None else self.hits / max(1, self.tokens)

    @property
    def bits_per_byte(self) -> float | None:
        """−log₂ p of the text, by its UTF-8 bytes; None where the bytes of the tokens are not known."""
        return self.text_nats / math.log(2) / self.bytes if self.bytes else None


@dataclass(frozen=True)
class TokenSizes:
    """How many bytes of text ids stand for.

    Attributes:
        bytes: by id; 0 for what stands for no text.
        blank_after: the id after which a text begins with a blank of the tokenizer's; None where it puts none.
    """

    bytes: Tensor
    blank_after: int | None = None


def token_sizes(tokenizer: Tokenizer, dataset: TokenDataset | None = None) -> TokenSizes | None:
    """The sizes of a tokenizer's ids in the text of `dataset`; None where nobody can know them.

    A tokenizer that changes text (other case, unknown characters) has tokens that are not the text. Then each counts as
    the mean of the whole split, whose text's bytes its `dataset.json` has: exact over the split, a mean over a part.
    """
    if tokenizer.keeps_text:
        sizes = torch.tensor([len(piece) for piece in tokenizer.token_bytes()], dtype=torch.float64)
        return TokenSizes(sizes, tokenizer.end_of_text if tokenizer.adds_blank else None)
    if dataset is None or dataset.bytes is None or dataset.documents is None:
        return None
    around = [tokenizer.end_of_text, *([] if tokenizer.document_end is None else [tokenizer.document_end])]
    text_tokens = dataset.tokens - dataset.documents * len(around)
    sizes = torch.full((tokenizer.vocab_size,), dataset.bytes / max(1, text_tokens), dtype=torch.float64)
    sizes[around] = 0
    return TokenSizes(sizes)


def token_nats(model: nn.Module, inputs_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
    """−log p(target) at each position, (B, T) fp32; 0 where the target is IGNORE."""
    hidden = model(inputs_BT, documents_BT).flatten(0, -2)
    return target_nats(model, hidden, targets_BT.flatten()).view_as(targets_BT)


def target_nats(model: nn.Module, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """−log p(target) under the head: N hidden states and their targets → (N,) fp32; 0 where it is IGNORE. Logits never
    exist whole."""
    return torch.cat([nats for nats, _ in _scores(model, hidden_ND, targets_N, hits=False)])


def target_scores(model: nn.Module, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """−log p(target) as `target_nats`, and whether the target is the likeliest token: (N,) fp32 and (N,) bool."""
    nats, hits = zip(*_scores(model, hidden_ND, targets_N, hits=True), strict=True)
    return torch.cat(nats), torch.cat(hits)


def _scores(
    model: nn.Module, hidden_ND: Tensor, targets_N: Tensor, *, hits: bool
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """−log p(target), and whether the target is the likeliest where that is asked; (n,) of n positions at a time."""
    rows = max(64, _CHUNK_LOGITS // model.vocab_size)
    for hidden, targets in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True):
        logits = model.logits(hidden).float()
        nats = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
        yield nats, logits.argmax(-1) == targets if hits else None


def evaluate_loss(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    sizes: TokenSizes | None,
    device: torch.device,
    dtype: torch.dtype,
    world: World | None = None,
    accuracy: bool = False,
) -> LossResult:
    """Loss over `batches` (this process's share of them), summed over all processes of `world`.

    `sizes`: the bytes of text that ids stand for; None leaves bits per byte unknown. `accuracy`: whether to count hits.
    The model is left in the mode it was in.
    """
    totals = torch.zeros(4 + accuracy, dtype=_sum_dtype(device), device=device)
    for sums in window_sums(model, batches, sizes=sizes, device=device, dtype=dtype, accuracy=accuracy):
        totals += sums.sum(0)
    if world is not None:
        world.all_reduce(totals)
    nats, tokens, text_nats, size, *hits = totals.tolist()
    return LossResult(nats, round(tokens), text_nats, round(size), round(hits[0]) if hits else None)


@torch.no_grad()
def window_sums(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    sizes: TokenSizes | None,
    device: torch.device,
    dtype: torch.dtype,
    accuracy: bool = False,
) -> Iterator[Tensor]:
    """For each batch the sums of each of its rows, (B, 4), with `accuracy` (B, 5): the fields of `LossResult`, in their
    order.

    They stay on the device, so that nothing waits for them. Arguments as of `evaluate_loss`; the model is left in the
    mode it was in once all batches are taken.
    """
    lengths = sizes.bytes.to(device, _sum_dtype(device)) if sizes is not None else None
    blank_after = sizes.blank_after if sizes is not None else None
    training = model.training
    model.eval()
    try:
        for batch in batches:
            inputs, targets, documents = (_to(x, device) for x in (batch.inputs, batch.targets, batch.documents))
            with autocast(device, dtype):
                hidden = model(inputs, documents).flatten(0, -2)
                scores = list(_scores(model, hidden, targets.flatten(), hits=accuracy))
            nats = torch.cat([nats for nats, _ in scores]).view_as(targets)
            counted = targets != IGNORE
            size = torch.where(counted, lengths[targets.clamp(min=0)], 0) if lengths is not None else counted * 0
            text_nats = nats * (size > 0)
            if blank_after is not None:
                size = size - ((inputs == blank_after) & (size > 0)).to(size.dtype)
            sums = [nats, counted, text_nats, size]
            if accuracy:
                sums.append(torch.cat([hits for _, hits in scores if hits is not None]).view_as(targets))
            yield torch.stack([value.to(_sum_dtype(device)).sum(-1) for value in sums], dim=-1)
    finally:
        model.train(training)


def _sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, torch.int64, non_blocking=True)
