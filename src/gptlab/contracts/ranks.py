"""The same computation by one process or by two, and two processes that stay to serve many subjects.

A pool of two is started when it is first asked for, and ends with the program. Subjects travel as nested dictionaries;
what comes back are tensors.
"""

from __future__ import annotations

import atexit
import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from gptlab.config import config_from
from gptlab.contracts.subject import SEED, B, Subject, gradients, rows_of, seeded_hidden
from gptlab.model.component import after_step, before_step
from gptlab.model.pieces import in_order
from gptlab.optim import show_loss
from gptlab.parallel import World, choose_layout
from gptlab.parallel.sharding import finish_gradients, shard
from gptlab.training.accumulation import accumulate

Groups = Mapping[str, Mapping[str, Tensor]]
"""Tensors by name, in groups."""
_SECONDS = 120  # no tiny subject takes longer; two that wait for each other would wait forever


@dataclass(frozen=True)
class TwoSteps:
    """What two training steps leave: the first one's loss and metrics (a mean over the places of the batch) and number
    of targets; its gradients; how far each parameter moved; and what parameters without a gradient hold (a balance that
    modules keep by themselves)."""

    sums: dict[str, Tensor]
    gradients: dict[str, Tensor]
    moved: dict[str, Tensor]
    kept: dict[str, Tensor]


def two_steps(
    subject: Subject, *, pieces: int, world: World | None = None, documents: bool = False, perturbed: bool = True
) -> TwoSteps:
    """Two optimizer steps on the subject's batch, in `pieces` micro-batches, by this process's share of it.

    By the functions that the training loop itself is made of.
    """
    world = world or World()
    layout = choose_layout(world, torch.device("cpu"))
    model = subject.model(perturbed=perturbed, documents=documents)
    wrapped = layout.wrap(model)
    loss, optimizer, batch = subject.loss(), subject.optimizer(model), subject.batch()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    share = B // world.size
    rows = share // pieces
    starts = [world.rank * share + piece * rows for piece in range(pieces)]
    sums: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    for step in range(2):
        before_step(model, step / 2)
        torch.manual_seed(SEED)
        done = accumulate(
            wrapped,
            loss,
            [rows_of(batch, start, start + rows) for start in starts],
            global_targets=batch.inputs.numel(),
            layout=layout,
            dtype=torch.float32,
        )
        if step == 0:
            shares = {"sum": done.loss, "count": done.count, **done.metrics}
            sums = {name: world.all_reduce(value.detach().double()) for name, value in shares.items()}
            first = gradients(model)
        show_loss(optimizer, done.loss, world.all_reduce)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after_step(model, world.all_reduce)
    after = {name: p.detach() for name, p in model.named_parameters()}
    moved = {name: after[name] - before[name] for name in first}
    return TwoSteps(sums, first, moved, {name: value for name, value in after.items() if name not in first})


def _sharded(subject: Subject, world: World, perturbed: bool) -> Groups:
    """Hidden states and gradients of a model that is whole, and of the same one cut over the processes."""
    groups: dict[str, dict[str, Tensor]] = {}
    ids, documents = subject.ids(2), subject.documents(2)
    for name in ("whole", "sharded"):
        model = subject.model(perturbed=perturbed)
        if name == "sharded":
            shard(model, _mesh(world.size))
        hidden = seeded_hidden(model, ids, documents)
        weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(5))
        (hidden * weights).sum().backward()
        if name == "sharded":
            finish_gradients(model, _mesh(world.size))
        parameters = dict(model.named_parameters())
        found = {key: in_order(gradient, parameters[key]) for key, gradient in gradients(model).items()}
        groups[name] = {"hidden": hidden.detach(), **found}
    return groups


@functools.cache
def _mesh(size: int) -> DeviceMesh:
    return init_device_mesh("cpu", (size,))


_JOBS: dict[str, Callable[[Subject, World, bool], Groups]] = {
    "two steps": lambda subject, world, perturbed: vars(two_steps(subject, pieces=1, world=world, perturbed=perturbed)),
    "sharded": _sharded,
}

# ---------------------------------------------------------------- two processes


class RankPool:
    """Two processes, connected by gloo, that take subjects one after the other."""

    def __init__(self) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, self._folder.name), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, subject: Subject, job: str, *, perturbed: bool = True) -> Groups | str:
        """What the first process finds when both do `job`, a key of `_JOBS`, on `subject`; or, in words, what went
        wrong. After that the next call starts anew."""
        for pipe in self._pipes:
            pipe.send({"job": job, "config": subject.config.plain(), "parts": subject.parts, "perturbed": perturbed})
        answers: list[Any] = []
        for pipe in self._pipes:
            try:
                answers.append(pipe.recv() if pipe.poll(_SECONDS) else f"no answer in {_SECONDS} seconds")
            except EOFError:
                answers.append("a process ended without a word")
            if isinstance(answers[-1], str):
                break
        problem = next((answer for answer in answers if isinstance(answer, str)), None)
        if problem is not None:
            self.close()
            rank_pool.cache_clear()
            return problem
        return {group: {name: torch.as_tensor(x) for name, x in arrays.items()} for group, arrays in answers[0].items()}

    def close(self) -> None:
        """End both processes."""
        for process in self._processes:
            process.terminate()
            process.join()
        self._folder.cleanup()


@functools.cache
def rank_pool() -> RankPool:
    """The program's two processes."""
    made = RankPool()
    atexit.register(made.close)
    return made


def _serve(pipe: Connection, rank: int, folder: str) -> None:
    """What each process does: join the other, then work on what comes."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=_SECONDS))
    world = World(rank=rank, size=2, local_rank=rank)
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            return
        try:
            subject = Subject(kind="", label="", config=config_from(message["config"]), parts=tuple(message["parts"]))
            groups = _JOBS[message["job"]](subject, world, message["perturbed"])
            # As arrays: torch would pass tensors as shared memory, which ends with the process that made it.
            pipe.send({group: {name: x.numpy() for name, x in tensors.items()} for group, tensors in groups.items()})
        except (Exception, SystemExit) as error:
            pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())}")
