"""Tensors that are cut over processes (torch's DTensors): what is here of them, and how they are made whole again.

Most lie as torch says. The rows of some had to be ordered anew before they were cut, so that each process's part of all
that is stacked in them is one stretch; they say so by the attribute `order` of their parameter.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from gptlab.model.component import declared


def is_cut(tensor: Any) -> bool:
    """Whether a tensor is a DTensor, whose import takes a second, and which nobody has who did not import it."""
    return hasattr(tensor, "full_tensor")


def in_order(tensor: Any, parameter: Tensor) -> Tensor:
    """`tensor`, shaped like `parameter` and lying like it over the processes, whole and with its rows as the model has
    them. Every process calls it."""
    whole: Tensor = tensor.full_tensor() if is_cut(tensor) else tensor
    order = declared(parameter, "order")
    if order is None:
        return whole
    found = torch.empty_like(whole)
    found[order.to(whole.device)] = whole
    return found


def lay_out(whole: Tensor, parameter: Any) -> Tensor:
    """This process's part of `whole`, cut like `parameter`: the other way of `in_order`. Nothing is exchanged."""
    order = declared(parameter, "order")
    laid = whole if order is None else whole[order.to(whole.device)]
    shape, offset = _stretch(whole.shape, parameter.device_mesh, tuple(parameter.placements))
    for dimension, (size, start) in enumerate(zip(shape, offset, strict=True)):
        laid = laid.narrow(dimension, start if size else 0, size)
    return laid


def local(tensor: Any) -> Tensor:
    """The part of a tensor that this process has."""
    here: Tensor = tensor.to_local() if is_cut(tensor) else tensor
    return here


@functools.cache
def _stretch(shape: torch.Size, mesh: Any, placements: tuple[Any, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes of this process's part of a whole of `shape`, and where it begins."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    found: tuple[tuple[int, ...], tuple[int, ...]] = compute_local_shape_and_global_offset(shape, mesh, placements)
    return found
