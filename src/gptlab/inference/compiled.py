"""The step that adds one token to each text, compiled: kernels that read every matrix once, and little beside.

A token costs one reading of the weights, and on a CPU as much again in calls: some twenty operations a layer, each
woken on every thread. `torch.compile` writes C++ for the whole step, with matrices laid out for it and small operations
inside the products (benchmarks/generation.py; decision 0034). It takes about half a minute for one text, and a minute
for any other number of them, once a process: for a server, a conversation or many samples.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gptlab.errors import GptlabError, option
from gptlab.inference.cache import KVCache, RowCache
from gptlab.inference.decoder import read_texts
from gptlab.inference.packing import packed_copy, shared_copy

_INDUCTOR = {
    "freezing": True,
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP,ATEN",
    "max_autotune_report_choices_stats": False,
}
"""Weights are constants that may be laid out anew; a product's kernel is chosen by trial, torch's own among them."""

_MOST_ROWS = 64
"""Above it products of matrices are all there is, and the packed model is as fast."""

_LEAST_LENGTH = 2
"""torch.compile takes 0 and 1 for what they are, and would compile them apart."""

_TURN = threading.Lock()
"""The compiler's settings are the process's, and each served model has a thread."""


class CompiledSteps(nn.Module):
    """`model`, on a CPU and not trained any more, as generation asks it: prompts are read by a packed copy, and the
    tokens after them by a compiled one. Numbers are those of `model` up to rounding. Each copy lays the matrices out
    for itself, so they take memory twice more. `backend`: of torch.compile.
    """

    def __init__(self, model: nn.Module, backend: str = "inductor") -> None:
        super().__init__()
        from torch._inductor import select_algorithm  # takes a second to import

        select_algorithm.PRINT_AUTOTUNE = False  # its trials are nobody's to read
        self.whole = packed_copy(model, torch.float32).eval()
        self.step = shared_copy(model).eval()
        self.vocab_size, self.context_length = model.vocab_size, model.context_length
        self._step = torch.compile(self.step.forward, dynamic=True, backend=backend)
        self._head = torch.compile(self.step.logits, dynamic=True, backend=backend)

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, as of the model."""
        found: nn.ModuleList = self.whole.blocks
        return found

    def forward(self, ids_BT: Tensor, *, cache: KVCache) -> Tensor:
        """Hidden states of tokens that follow what `cache` holds: (B, T, D)."""
        rows, length = ids_BT.shape
        if length > 1 or rows > _MOST_ROWS or cache.length < _LEAST_LENGTH:
            found: Tensor = self.whole(ids_BT, cache=cache)
            return found
        cache.reserve(1)  # a cache that grew inside would be compiled for each of its sizes
        return self._compiled(self._step, ids_BT, cache=cache)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """The head: (…, D) → (…, V)."""
        if x_BTD.ndim != 2 or len(x_BTD) > _MOST_ROWS:
            found: Tensor = self.whole.logits(x_BTD)
            return found
        # A view of a prompt's last state has strides that would be compiled apart, even of one row.
        return self._compiled(self._head, x_BTD.clone(memory_format=torch.contiguous_format))

    def _compiled(self, call: Any, *args: Any, **kwargs: Any) -> Tensor:
        with _TURN, torch._inductor.config.patch(_INDUCTOR):
            found: Tensor = call(*args, **kwargs)
            return found


@torch.inference_mode()
def warm_up(model: CompiledSteps, texts: Sequence[Sequence[int]], *, joining: bool = False) -> None:
    """Compile the step for so many texts, padded where their lengths differ; `joining`: as rows that come and go.

    Raises GptlabError where torch.compile fails, as without a C++ compiler.
    """
    device = torch.device("cpu")
    ids = [list(text)[: model.context_length - 2] + [0] * max(0, _LEAST_LENGTH - len(text)) for text in texts]
    read = read_texts(model, ids, device, model.context_length)
    cache = read.cache
    if joining:
        cache = RowCache(len(model.blocks), device=device)
        cache.join(read.cache)
    try:
        with warnings.catch_warnings(action="ignore"):
            model.logits(model(torch.zeros(len(ids), 1, dtype=torch.int64), cache=cache)[:, -1])
    except Exception as error:  # a compiler can fail in any way it likes
        lines = str(error).strip().splitlines() or [type(error).__name__]
        why = f"torch.compile failed ({lines[0][:160]})"
        raise GptlabError(f"{option('compile', True)}: {why}; leave it out, or install a C++ compiler") from None


def check_compiles(device: torch.device, quantized: str | None) -> None:
    """Raise GptlabError where steps are not compiled: off the CPU, or for weights in fewer bits."""
    if device.type != "cpu":
        problem = f"this is {device.type}, and steps are compiled for CPUs"
    elif quantized is not None:
        problem = f"weights in {quantized} have a kernel of torch's own"
    else:
        return
    raise GptlabError(f"{option('compile', True)}: {problem}; leave it out")
