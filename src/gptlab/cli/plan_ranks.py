"""`gptlab plan --nodes`: what one process of many will hold and send."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptlab.cli.tables import add_row, new_table, show
from gptlab.console import output, waiting
from gptlab.errors import GptlabError

if TYPE_CHECKING:
    from gptlab.config import RunConfig
    from gptlab.hardware.gpus import Gpu
    from gptlab.training.ranks import RankPlan

LINK, NETWORK = 300.0, 25.0
"""Billions of bytes that a process sends a second: to others of its machine, as NVLink of an H100 allows, and to other
machines, by a network of 200 Gbit/s for each card."""


def plan_ranks(
    config: RunConfig, vocab_size: int, *, nodes: int, per_node: int, card: Gpu | None, link: float, network: float
) -> None:
    """Count and print. Raises GptlabError where it does not fit the card, or the layout cannot be."""
    with waiting(f"{config.name}: a step on {nodes * per_node:,} processes that are not there"):
        found = _fitting(config, vocab_size, nodes * per_node, per_node, card)
    flops = config.train.batch_tokens * _flops_per_token(config, vocab_size)
    _print(config, found, flops, nodes, per_node, card, link, network)


def _fitting(config: RunConfig, vocab_size: int, processes: int, per_node: int, card: Gpu | None) -> RankPlan:
    """With the largest power-of-two share of a process's sequences at once that fits; with one where no card is named,
    and as the config says where it says."""
    import torch

    from gptlab.planning.formatting import format_bytes
    from gptlab.planning.plan import USABLE_MEMORY
    from gptlab.training.ranks import plan_rank

    kind = torch.float32 if config.train.dtype == "float32" else torch.bfloat16

    def at(rows: int | None) -> RankPlan:
        return plan_rank(config, vocab_size, processes, per_node=per_node, micro_batch=rows, dtype=kind)

    one = at(1 if config.system.micro_batch == "auto" else None)
    if card is None:
        return one
    limit = card.memory * USABLE_MEMORY
    if one.total > limit:
        raise GptlabError(
            f"{config.name} does not fit: a process needs {format_bytes(one.total)} of {format_bytes(limit)} usable, "
            f"{format_bytes(one.working)} of it activations; set parallel.shard, parallel.recompute or parallel.tensor"
        )
    rows = one.micro_batch * one.micro_batches
    if config.system.micro_batch != "auto" or rows == 1:
        return one
    each = at(2).working - one.working
    while rows > 1 and one.total + (rows - 1) * each > limit:
        rows = -(-rows // 2)
    return at(rows)


def _print(
    config: RunConfig,
    found: RankPlan,
    flops: float,
    nodes: int,
    per_node: int,
    card: Gpu | None,
    link: float,
    network: float,
) -> None:
    from gptlab.planning.formatting import format_bytes, format_dollars, format_seconds
    from gptlab.planning.plan import MATMUL_EFFICIENCY, USABLE_MEMORY

    screen = output()
    times = f"{found.micro_batch} sequences at once, {found.micro_batches} times a step"
    table = new_table((f"one of {found.processes:,} processes, {nodes} × {per_node}: {times}", ""))
    for name in ("weights", "gradients", "optimizer", "working"):
        add_row(table, (f"  {name}", format_bytes(getattr(found, name))))
    usable = "" if card is None else f" of {format_bytes(card.memory * USABLE_MEMORY)} usable"
    add_row(table, (f"  together{usable}", format_bytes(found.total)), style="bold")
    show(table)
    sent = new_table(("sent a step by a process", "processes", "calls", "bytes", "time"))
    sending = 0.0
    for one in found.transfers:
        seconds = one.sent / (1e9 * (network if one.between_nodes else link))
        sending += seconds
        where = "between machines" if one.between_nodes else "inside one"
        cells = (f"{one.processes:,}", f"{one.calls:,}", format_bytes(one.sent), format_seconds(seconds))
        add_row(sent, (f"  {one.collective}, {where}", *cells))
    if found.transfers:
        screen.print()
        show(sent)
    screen.print(
        f"\nassumed:\n  a ring: (n - 1)/n of what is moved, twice for an all-reduce"
        f"\n  {link:g} GB/s between processes of a machine, {network:g} GB/s for each to others",
        markup=False,
    )
    if card is None:
        return
    computing = flops / (found.processes * card.peak * MATMUL_EFFICIENCY)
    low, high = max(computing, sending), computing + sending
    screen.print(
        f"  matrix products at {MATMUL_EFFICIENCY:.0%} of the data sheet of {card.name}\n\n"
        f"a step: {format_seconds(computing)} of computing, {format_seconds(sending)} of sending; "
        f"{format_seconds(low)} if they overlap, {format_seconds(high)} if not at all "
        f"(MFU {flops / found.processes / card.peak / high:.0%} to {flops / found.processes / card.peak / low:.0%})",
        markup=False,
    )
    hours = [config.total_steps * seconds / 3600 for seconds in (low, high)]
    text = f"{config.total_steps:,} steps: {format_seconds(3600 * hours[0])} to {format_seconds(3600 * hours[1])}"
    if card.dollars_per_hour is not None:
        costs = [format_dollars(value * found.processes * card.dollars_per_hour) for value in hours]
        text += f", {costs[0]} to {costs[1]}"
    screen.print(text, markup=False)


def _flops_per_token(config: RunConfig, vocab_size: int) -> float:
    from gptlab.model import build_model
    from gptlab.model.component import training_flops

    return training_flops(build_model(config, vocab_size, device="meta"), config.train.sequence_length)
