"""Weights in fewer bits, for inference: each matrix of a product as int8, with a scale a row.

The scales and the rounding are torchao's (`Int8WeightOnlyConfig`: symmetric, the largest magnitude of a row is 127 or
-128 of its steps). Activations stay as they are, and nothing is calibrated. What is kept here is whole: who reads the
`weight` of a layer is given the matrix that its bytes stand for, so that attention or experts that multiply by it
themselves work as with any other weights.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.errors import ConfigError, GptlabError, did_you_mean, option
from gptlab.inference.packing import replace_modules

KINDS = ("int8",)

_KERNEL_ROWS = 16
"""Up to so many vectors at once torch's int8 kernel for CPUs is faster than a product of matrices; it takes them one by
one (benchmarks/quantization.py)."""


class QuantizedLinear(nn.Linear):
    """A linear layer that keeps its matrix in int8: weight[f, d] = scale[f] · rows[f, d].

    `rows`: (F, D) int8; `scale`: (F, 1) in the precision that the weights had.
    """

    def __init__(self, rows: nn.Parameter, scale: Tensor, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)  # nn.Linear's would make a matrix
        self.out_features, self.in_features = rows.shape
        self.rows, self.bias = rows, bias
        self.register_buffer("scale", scale)
        self.by_kernel = False

    @property
    def weight(self) -> Tensor:
        """The matrix that the bytes stand for, (F, D), made anew at each reading."""
        return self.rows.to(self.scale.dtype) * self.scale

    def use_kernel(self) -> None:
        """Multiply single vectors on a CPU without making the matrix, by a kernel that reads its bytes.

        Activations are then rounded to bfloat16. The kernel is wrong for a width that is no multiple of 16, and is
        left out there.
        """
        if self.in_features % 16 == 0:
            self.by_kernel = True
            self.register_buffer("ones", torch.ones(self.out_features, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, F)"""
        if not self.by_kernel or x.numel() > _KERNEL_ROWS * self.in_features:
            return F.linear(x, self.weight, self.bias)
        vectors = x.reshape(-1, self.in_features).bfloat16()
        # The kernel takes scales in bfloat16 alone, where a row would lose three digits of its own.
        product = torch._weight_int8pack_mm(vectors, self.rows, self.ones).to(x.dtype) * self.scale[:, 0]
        product = product.view(*x.shape[:-1], self.out_features)
        return product if self.bias is None else product + self.bias


class QuantizedEmbedding(nn.Embedding):
    """The embedding of a model whose head is tied to it: rows of the head's one matrix, ids (…) → (…, D)."""

    def __init__(self, head: QuantizedLinear) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim, self.padding_idx = head.out_features, head.in_features, None
        self.rows = head.rows
        self.register_buffer("scale", head.scale)

    @property
    def weight(self) -> Tensor:
        """As of the head, (V, D)."""
        return self.rows.to(self.scale.dtype) * self.scale

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (…) → (…, D)"""
        return F.embedding(ids, self.rows).to(self.scale.dtype) * F.embedding(ids, self.scale)


def check_kind(kind: str) -> None:
    """Raises ConfigError where `kind` is none of `KINDS`, GptlabError where torchao is not installed."""
    if kind not in KINDS:
        raise ConfigError(f"{option('quantize', kind)}: not one of these; {did_you_mean(kind, KINDS)}")
    _torchao()


def quantize(model: nn.Module, kind: str) -> None:
    """Keep the matrices of all linear layers of `model` in int8 from here on, a tied one as the one that it is.

    Other embeddings, gains and biases stay as they are, and so do layers of classes of one's own, whose forward pass is
    not known. Raises as `check_kind`, and ConfigError for a model without linear layers.
    """
    check_kind(kind)
    embeddings = {id(m.weight): m for m in model.modules() if type(m) is nn.Embedding}
    layers: dict[int, list[nn.Linear]] = {}
    for module in model.modules():
        if type(module) is nn.Linear:
            layers.setdefault(id(module.weight), []).append(module)
    if not layers:
        raise ConfigError(f"{option('quantize', kind)}: {type(model).__name__} has no linear layers to quantize")
    instead: dict[nn.Module, nn.Module] = {}
    for shared, alike in layers.items():
        rows, scale = _int8_rows(alike[0])
        instead |= {layer: QuantizedLinear(rows, scale, layer.bias) for layer in alike}
        if shared in embeddings:
            instead[embeddings[shared]] = QuantizedEmbedding(instead[alike[0]])
    replace_modules(model, instead)


def is_quantized(model: nn.Module) -> bool:
    """Whether any matrix of `model` is kept in fewer bits than it was trained in."""
    return any(isinstance(module, QuantizedLinear) for module in model.modules())


def _int8_rows(layer: nn.Linear) -> tuple[nn.Parameter, Tensor]:
    """The matrix of a layer in int8, (F, D), and the scale of each row, (F, 1)."""
    torchao = _torchao()
    copy = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    copy.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
    torchao.quantize_(copy, torchao.Int8WeightOnlyConfig())
    return nn.Parameter(copy.weight.qdata, requires_grad=False), copy.weight.scale


def _torchao() -> Any:
    try:
        with _unheard():
            import torchao.quantization
    except ImportError:
        raise GptlabError("int8 weights need torchao; install it with: pip install 'gptlab[quantize]'") from None
    return torchao.quantization


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Without the log lines by which torchao tells of kernels for hardware that is not here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
