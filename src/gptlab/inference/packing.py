"""Matrices laid out once as a CPU's kernels read them, for models that are read many times and never trained.

torch multiplies float32 on a CPU by MKL, which takes a matrix as it stands. oneDNN, which comes with torch as well,
cuts it into blocks of its own first; kept in those blocks, the same product is never slower, for few vectors at once
twice to four times as fast, and for a thousand still a tenth (benchmarks/packing.py; decision 0032). The operators are
those that `torch.compile` writes for a frozen linear layer.
"""

from __future__ import annotations

import copy
import platform
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_EXPECTED_ROWS = 64
"""For how many vectors at once oneDNN lays a matrix out; above a dozen its choice is the same, and good for one too."""


class PackedLinear(nn.Linear):
    """A linear layer that multiplies by a packed copy of its matrix, in `dtype`: float32, or bfloat16 where `can_pack`.

    It shares its parameters with `layer`, so that who reads `weight` finds it; a change of them is not seen. Gradients
    do not pass.
    """

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # nn.Linear's would make a matrix
        self.out_features, self.in_features = layer.out_features, layer.in_features
        self.weight, self.bias = layer.weight, layer.bias
        self.dtype = dtype
        self._bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        with torch.no_grad():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(dtype), _EXPECTED_ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, F), in the layer's own precision."""
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self._packed, self._bias, "none", [], "")


def can_pack(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this torch has oneDNN's operators for `dtype`, on the kind of CPU that they were measured on."""
    here = platform.machine().lower() in ("x86_64", "amd64") and torch.backends.mkldnn.is_available()
    if not here or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules of `model`, on its own parameters and buffers."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def packed_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of `model`, which is on a CPU, that multiplies by packed matrices in `dtype`.

    Embeddings, gains, biases and everything that is not a plain linear layer are shared with `model`; the packed
    matrices take memory again. Where nothing can be packed, matrices in float32 are laid out by columns, (D, V)
    contiguous for a weight of (V, D): a product with one vector then streams them.
    """
    twin = shared_copy(model)
    layers = [module for module in twin.modules() if type(module) is nn.Linear]
    if can_pack(dtype):
        replace_modules(twin, {layer: PackedLinear(layer, dtype) for layer in layers})
    elif dtype == torch.float32:
        for layer in layers:
            layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t(), requires_grad=False)
    return twin


def scoring_copy(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """`model` for reading many texts without training between them: packed on a CPU, elsewhere itself.

    In bfloat16 it multiplies by the rounding that autocast makes anew at each product.
    """
    return packed_copy(model, dtype) if device.type == "cpu" and can_pack(dtype) else model


def replace_modules(model: nn.Module, instead: Mapping[nn.Module, nn.Module]) -> None:
    """Put each of `instead` in the place, or places, of the module that it is for."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in instead:
                setattr(parent, name, instead[child].train(child.training))
