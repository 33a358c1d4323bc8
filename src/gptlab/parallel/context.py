"""Sequences cut over processes: each has a stretch of every sequence, and reads the keys and values of all before it.

As Llama 3 was trained (arXiv:2407.21783, section 3.3.2): keys and values of a layer are gathered, queries stay. To a
model a stretch is what follows a cache: its queries are the last of the keys that they see. So everything that can read
on from a cache (windows, document masks, slopes, latents, key offsets) can be cut, and no layer knows of it.

Letters: B batch, T positions of a sequence that this process has, S positions up to their end, K key-value heads,
C their width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from gptlab.loss import TokenBatch
from gptlab.parallel.layout import Layout, check_stretches


class ContextParallel(Layout):
    """Sequences in `pieces`, one for each of so many neighbouring processes; `inner` is how parameters lie over all."""

    def __init__(self, inner: Layout, pieces: int) -> None:
        super().__init__(inner.world, inner.device)
        self.inner, self.pieces = inner, pieces
        self.place = inner.data_rank % pieces
        self.replaces_parameters, self.copies = inner.replaces_parameters, inner.copies
        mesh = init_device_mesh(
            self.device.type,
            (self.data_size, pieces, inner.copies),
            mesh_dim_names=("data", "context", "tensor"),
        )
        self._group = mesh["context"].get_group()

    @property
    def data_rank(self) -> int:
        """Processes that share sequences are neighbours."""
        return self.inner.data_rank // self.pieces

    @property
    def data_size(self) -> int:
        """A group of processes reads each sequence."""
        return self.inner.data_size // self.pieces

    @property
    def loss_scale(self) -> float:
        """That of `inner`: each process has tokens of its own."""
        return self.inner.loss_scale

    def part(self, batch: TokenBatch) -> TokenBatch:
        """This process's stretch of each sequence; of the documents all up to its end.

        Raises ConfigError for a length that cannot be cut evenly."""
        length = batch.inputs.shape[1]
        check_stretches(length, self.pieces)
        begin, end = length * self.place // self.pieces, length * (self.place + 1) // self.pieces
        own = slice(begin, end)
        return replace(
            batch, inputs=batch.inputs[:, own], targets=batch.targets[:, own], documents=batch.documents[:, :end]
        )

    def meet(self) -> None:
        """As of `Layout`; its own are made at once."""
        self.inner.meet()

    def wrap(self, model: nn.Module) -> nn.Module:
        """What `inner` makes of it, called with keys and values of the processes before this one."""
        return _Stretch(self.inner.wrap(model), self)  # type: ignore[return-value]

    def backward_sync(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        """As of `inner`."""
        return self.inner.backward_sync(_stretch(wrapped).wrapped, last)

    def clip(self, model: nn.Module, limit: float | None) -> Tensor:
        """As of `inner`."""
        return self.inner.clip(model, limit)

    def full_state(self, model: nn.Module) -> dict[str, Tensor]:
        """As of `inner`."""
        return self.inner.full_state(model)

    def as_built(self, model: nn.Module) -> nn.Module:
        """As of `inner`."""
        return self.inner.as_built(model)

    @contextlib.contextmanager
    def whole(self, model: nn.Module) -> Iterator[nn.Module]:
        """As of `inner`."""
        with self.inner.whole(model) as found:
            yield found

    def unwrap(self, wrapped: nn.Module) -> nn.Module:
        """The model."""
        return self.inner.unwrap(_stretch(wrapped).wrapped)

    def gather(self, tensor: Tensor) -> Tensor:
        """(B, K, T, C) of each process → (B, K, S, C) up to the end of this one's; gradients go back to their owners.
        All processes of the group call it, in the same order."""
        whole: Tensor = _Gather.apply(tensor, self._group)
        return whole[:, :, : tensor.shape[2] * (self.place + 1)]


class Gathered:
    """A cache as models read it, of what the processes before this one compute in the same pass."""

    def __init__(self, layout: ContextParallel, length: int, device: torch.device) -> None:
        self.layout, self.device = layout, device
        self.length = layout.place * length

    def positions(self, length: int) -> Tensor:
        """Positions of this process's tokens: (T,)"""
        return torch.arange(self.length, self.length + length, device=self.device)

    def mask(self, length: int) -> Tensor | None:
        """True where a query may see a key, (1, 1, T, S); None for the first stretch, where causality says it all."""
        if self.length == 0:
            return None
        key = torch.arange(self.length + length, device=self.device)
        return (key[None] <= key[self.length :, None])[None, None]

    def starts(self, length: int) -> Tensor:
        """True at the first key of a sequence: (1, S)"""
        return (torch.arange(self.length + length, device=self.device) == 0)[None]

    def update(self, layer_index: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values up to the end of this process's tokens, each (B, K, S, its own width)."""
        return self.layout.gather(k_BKTC), self.layout.gather(v_BKTC)


class _Stretch:
    """A wrapped model that reads a stretch; its attributes are the model's."""

    def __init__(self, wrapped: nn.Module, layout: ContextParallel) -> None:
        self.wrapped, self._layout = wrapped, layout

    def __call__(self, ids_BT: Tensor, documents_BS: Tensor | None = None, **options: Any) -> Any:
        cache = Gathered(self._layout, ids_BT.shape[1], ids_BT.device)
        return self.wrapped(ids_BT, documents_BS, cache=cache, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)


def _stretch(wrapped: Any) -> _Stretch:
    assert isinstance(wrapped, _Stretch)
    return wrapped


class _Gather(torch.autograd.Function):
    """The parts of a group's processes, one after the other along the third dimension; the gradient of each part is
    the sum of what all ask of it."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, size = group, group.size()
        first = part.movedim(2, 0).contiguous()
        found = first.new_empty(size * len(first), *first.shape[1:])
        dist.all_gather_into_tensor(found, first, group=group)
        return found.movedim(0, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        whole = grad.movedim(2, 0).contiguous()
        found = whole.new_empty(len(whole) // ctx.group.size(), *whole.shape[1:])
        dist.reduce_scatter_tensor(found, whole, group=ctx.group)
        return found.movedim(0, 2), None
