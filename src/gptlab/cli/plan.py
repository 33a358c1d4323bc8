"""`gptlab plan`: what a run will cost, before it is run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptlab.cli.options import OneStage, Overrides, Scale, apply_scale, load_one, vocabulary_of
from gptlab.cli.plan_ranks import LINK, NETWORK, plan_ranks
from gptlab.cli.tables import add_row, new_table, show
from gptlab.console import output, waiting
from gptlab.errors import ConfigError, GptlabError
from gptlab.files import settle

if TYPE_CHECKING:
    from rich.table import Table

    from gptlab.config import RunConfig
    from gptlab.hardware.gpus import Gpu
    from gptlab.planning.budget import Budget
    from gptlab.planning.plan import Footprint, Plan, Probe


def plan(
    config: Annotated[str, typer.Argument(help="a YAML file, or a run folder")],
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    scale: Scale = None,
    stage: OneStage = None,
    gpu: Annotated[str | None, typer.Option(help="a card of the table of GPUs, such as 'RTX 4090'")] = None,
    gpus: Annotated[int, typer.Option(help="how many of them", min=1)] = 1,
    nodes: Annotated[int | None, typer.Option(help="machines: what one process of many holds and sends", min=1)] = None,
    gpus_per_node: Annotated[int, typer.Option(help="with --nodes: processes of each machine", min=1)] = 8,
    link: Annotated[float, typer.Option(help="with --nodes: GB/s between cards of a machine")] = LINK,
    network: Annotated[float, typer.Option(help="with --nodes: GB/s of each card to other machines")] = NETWORK,
    budget: Annotated[float | None, typer.Option(help="dollars: also say what they train best")] = None,
    rate: Annotated[float | None, typer.Option(help="dollars an hour of one device; default: the table's")] = None,
    overhead: Annotated[float, typer.Option(help="minutes paid for beside the run: renting, setting up", min=0)] = 60,
    probe: Annotated[
        bool | None, typer.Option("--probe/--no-probe", help="real steps on this machine; default: if there is data")
    ] = None,
    probe_seconds: Annotated[float, typer.Option(help="how long to take steps", min=0)] = 20,
    gpu_table: Annotated[Path | None, typer.Option(help="laid over the shipped table; default: ./gpus.yaml")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="V; default: that of the config's data", min=1)] = None,
    json_: Annotated[bool, typer.Option("--json", help="print the plan as JSON")] = False,
) -> None:
    """Predict parameters, FLOPs, memory, time and dollars of CONFIG, on this machine or on a GPU of the table."""
    from gptlab.config import find_config
    from gptlab.config.numbers import require_count
    from gptlab.hardware.gpus import find_gpu, read_gpus
    from gptlab.lab.experiment.spec import hash_of
    from gptlab.planning.budget import compute_optimal_budget
    from gptlab.planning.plan import Price, plan_run
    from gptlab.planning.records import keep_plan
    from gptlab.planning.subprocesses import probe_in_subprocess

    _check_options(gpu, gpus, rate, budget, probe)
    require_count("overhead", overhead, "minutes")
    require_count("probe_seconds", probe_seconds, "minutes")
    require_count("vocab_size", vocab_size or 1, "vocab_size")
    loaded = load_one(config, apply_scale(config, overrides, scale), stage)
    cards = read_gpus(gpu_table)
    card = find_gpu(gpu, cards) if gpu is not None else None
    if nodes is not None:
        _require_alone(gpus, budget, probe, nodes * gpus_per_node, link, network)
        shared = {"nodes": nodes, "per_node": gpus_per_node, "card": card, "link": link, "network": network}
        plan_ranks(loaded, vocab_size or vocabulary_of(config, loaded), **shared)
        return
    measured = None
    if card is None and (_has_data(loaded) if probe is None else probe):
        # Before torch is imported here, so that there is one torch in memory and not two.
        with waiting(f"{loaded.name}: real steps for about {probe_seconds:g} s"):
            measured = probe_in_subprocess(loaded, seconds=probe_seconds)
    vocabulary = vocab_size or vocabulary_of(config, loaded)
    with waiting(f"{loaded.name}: counting bytes"):
        found, limit = _footprint(loaded, vocabulary, card, gpus, measured)
    from gptlab.planning.footprint import describe_growth  # and with it torch

    planned = plan_run(
        loaded,
        found,
        probe=measured,
        gpu=card,
        devices=gpus,
        price=Price(rate) if rate is not None else _own_price(measured, cards),
        overhead_minutes=overhead,
        memory_limit=limit,
        validation_tokens=_validation_tokens(loaded),
        growth=describe_growth(loaded, found.parameters),
    )
    bought = compute_optimal_budget(planned, budget) if budget is not None else None
    if measured is not None:
        keep_plan(Path("runs"), hash_of(loaded), planned)
    if json_:
        _print_json(planned, measured, bought)
    else:
        _print_tables(planned, measured)
        if bought is not None:
            _print_budget(bought, planned, find_config(config), vocabulary)
        _print_past(Path("runs"))


def _check_options(gpu: str | None, gpus: int, rate: float | None, budget: float | None, probe: bool | None) -> None:
    from gptlab.config.numbers import BOUNDS

    if gpu is not None and probe:
        raise GptlabError("--probe takes steps on this machine and --gpu asks of another; give one of them")
    if gpus > BOUNDS["processes"]:
        raise GptlabError(f"--gpus {gpus:,}: more than anybody has; at most {BOUNDS['processes']:,}")
    if gpu is None and gpus > 1:
        raise GptlabError(f"--gpus {gpus}: of which kind? name it with --gpu, for example --gpu 'RTX 4090'")
    for name, dollars in (("--rate", rate), ("--budget", budget)):
        if dollars is not None and not 0 <= dollars <= BOUNDS["metric"]:
            raise GptlabError(f"{name} {dollars:g}: give dollars, 0 or more")


def _require_alone(
    gpus: int, budget: float | None, probe: bool | None, processes: int, link: float, network: float
) -> None:
    """What --nodes does not go with, and cannot be."""
    from gptlab.config.numbers import BOUNDS

    for name, given in (("--gpus", gpus > 1), ("--budget", budget is not None), ("--probe", bool(probe))):
        if given:
            raise GptlabError(f"--nodes plans one process of many, and {name} a whole run; give one of them")
    if processes > BOUNDS["processes"]:
        raise GptlabError(f"--nodes: {processes:,} processes; at most {BOUNDS['processes']:,}")
    for name, speed in (("--link", link), ("--network", network)):
        if not 0 < speed < 1e6:
            raise GptlabError(f"{name} {speed:g}: give billions of bytes a second, above 0")


# ---------------------------------------------------------------- what a plan is made of


def _sources(config: RunConfig) -> list[Path]:
    paths = config.data.sources.values() if config.data.sources else [config.data.path] if config.data.path else []
    found = [Path(path) for path in paths]
    for path in found:
        settle(path)
    return found


def _has_data(config: RunConfig) -> bool:
    return bool(sources := _sources(config)) and all(path.is_dir() for path in sources)


def _validation_tokens(config: RunConfig) -> int | None:
    """Tokens of one validation; None where only data that is not here would tell."""
    from gptlab.data import MANIFEST, Manifest

    sources = _sources(config)
    if config.eval.tokens is not None:
        return config.eval.tokens * max(1, len(sources))
    if not sources or not all((path / MANIFEST).is_file() for path in sources):
        return None
    return sum(Manifest.load(path).splits["validation"].tokens for path in sources)


def _footprint(
    config: RunConfig, vocabulary: int, card: Gpu | None, gpus: int, probe: Probe | None
) -> tuple[Footprint, int | None]:
    """Bytes by kind at the micro-batch that the run will have, and the bytes that there are."""
    import torch

    from gptlab.planning.footprint import fitting_footprint, footprint
    from gptlab.planning.plan import USABLE_MEMORY

    fixed = config.system.micro_batch
    if card is None:
        accelerator = probe is not None and probe.accelerator
        dtype = probe.dtype if probe is not None else {"auto": "bfloat16"}.get(config.train.dtype, config.train.dtype)
        rows = (
            probe.micro_batch if probe is not None else 1 if fixed == "auto" else min(fixed, config.sequences_per_step)
        )
        compiled = accelerator and config.system.compile is not False
        kind = getattr(torch, dtype)
        return footprint(config, vocabulary, rows, accelerator=accelerator, dtype=kind, compiled=compiled), None
    if config.sequences_per_step % gpus:
        raise ConfigError(
            f"--gpus {gpus}: {config.sequences_per_step} sequences a step cannot be shared by so many; "
            f"take {max(n for n in range(1, gpus) if config.sequences_per_step % n == 0)}"
        )
    rows, limit = config.sequences_per_step // gpus, int(card.memory * USABLE_MEMORY)
    kind = torch.float32 if config.train.dtype == "float32" else torch.bfloat16
    found = fitting_footprint(
        config,
        vocabulary,
        rows if fixed == "auto" else min(fixed, rows),
        limit,
        halve=fixed == "auto",
        accelerator=True,
        dtype=kind,
        compiled=config.system.compile is not False,
    )
    return found, limit


def _own_price(probe: Probe | None, cards: dict[str, Gpu]) -> Any:
    """What the table says that the GPU of this machine rents for, where it is one that the table knows."""
    from gptlab.hardware.gpus import gpu_of_driver
    from gptlab.planning.plan import Price

    mine = gpu_of_driver(probe.hardware, cards) if probe is not None and probe.accelerator else None
    return None if mine is None else Price(mine.dollars_per_hour, mine.priced, mine.source)


# ---------------------------------------------------------------- what is printed


def _print_json(planned: Plan, probe: Probe | None, bought: Budget | None) -> None:
    import dataclasses
    import json

    values: dict[str, Any] = {"plan": planned.plain()}
    values |= {name: part and dataclasses.asdict(part) for name, part in (("probe", probe), ("budget", bought))}
    print(json.dumps(values, indent=1))


def _print_tables(planned: Plan, probe: Probe | None) -> None:
    from gptlab.config import format_count
    from gptlab.planning.formatting import format_dollars, format_seconds

    screen, size = output(), planned.footprint
    steps = f"{planned.steps:,} batches ({planned.growth})" if planned.growth else f"{planned.steps:,} steps"
    screen.print(
        f"{planned.name}: {format_count(size.parameters)} parameters, "
        f"{format_count(size.parameters_without_embeddings)} without embeddings (V = {size.vocab_size:,})\n"
        f"{format_count(planned.tokens)} tokens in {steps} of "
        f"{planned.sequences_per_step:,} sequences; {planned.flops:.3g} FLOPs, "
        f"{format_count(size.flops_per_token)} a token\n",
        markup=False,
    )
    show(_memory_table(planned))
    if planned.seconds is None:
        screen.print("\ntime: prepare the data to take real steps here, or name a card with --gpu", markup=False)
    else:
        screen.print()
        show(_time_table(planned))
    if probe is not None:
        steps = f"{probe.steps} steps: {format_seconds(probe.step_seconds)} each, the middle half "
        steps += f"{format_seconds(probe.step_low)} to {format_seconds(probe.step_high)}"
        screen.print(f"\nmeasured on {probe.hardware} in {probe.dtype}, {steps}", markup=False)
    if planned.dollars is not None and planned.dollars_with_overhead is not None:
        screen.print(
            f"\n{format_dollars(planned.dollars)} for the run, {format_dollars(planned.dollars_with_overhead)} with "
            f"{planned.overhead_minutes:g} minutes beside it, "
            f"at {format_dollars(planned.dollars_per_hour or 0)} an hour"
            f"\nprice: {planned.priced}",
            markup=False,
        )
    if planned.assumptions:
        screen.print("\nassumed:", *(f"  {text}" for text in planned.assumptions), sep="\n", markup=False)


def _memory_table(planned: Plan) -> Table:
    """Bytes by kind; the rest of a measured peak is what nobody counts."""
    from gptlab.planning.formatting import format_bytes

    size = planned.footprint
    unit = "card" if planned.basis == "table" else "process"
    table = new_table((f"memory of one {unit}, {size.micro_batch} sequences at once", ""))
    for name in ("weights", "gradients", "optimizer", "activations", "logits"):
        add_row(table, (f"  {name}", format_bytes(getattr(size, name))))
    if planned.peak_memory > size.total:
        uncounted = format_bytes(planned.peak_memory - size.total)
        add_row(table, ("  Python, libraries and what the allocator keeps", uncounted))
    limit = "" if planned.memory_limit is None else f" of {format_bytes(planned.memory_limit)} usable"
    total = "peak, measured" if planned.basis == "probe" else f"together{limit}"
    add_row(table, (f"  {total}", format_bytes(planned.peak_memory)), style="bold")
    return table


def _time_table(planned: Plan) -> Table:
    from gptlab.planning.formatting import format_seconds

    where = planned.hardware if planned.devices == 1 else f"{planned.devices} × {planned.hardware}"
    spread = planned.spread
    table = new_table((f"time on {where}", "", "range"))
    parts = {"start-up": planned.startup_seconds, "training": planned.training_seconds}
    parts |= {f"validation, {planned.validations} times": planned.validation_seconds}
    parts |= {"saving": planned.saving_seconds, "together": planned.seconds}
    for name, seconds in parts.items():
        if seconds:
            low, high = format_seconds(seconds / spread), format_seconds(seconds * spread)
            shown = f"{low} to {high}" if name in ("training", "together") else ""
            style = "bold" if name == "together" else None
            add_row(table, (f"  {name}", format_seconds(seconds), shown), style=style)
    return table


def _print_budget(bought: Budget, planned: Plan, config: Path, vocabulary: int) -> None:
    """What the money trains, and the config beside this one that comes nearest."""
    from gptlab.config import format_count
    from gptlab.planning.budget import nearest_size
    from gptlab.planning.formatting import format_dollars, format_seconds

    text = (
        f"\n{format_dollars(bought.dollars)} buy {format_seconds(bought.hours * 3600)} of training after the overhead: "
        f"{bought.flops:.3g} FLOPs at the speed above.\nChinchilla-optimal: {format_count(bought.parameters)} "
        f"parameters on {format_count(bought.tokens)} tokens ({bought.tokens_per_parameter:g} a parameter)."
    )
    sizes = _sizes_beside(config, vocabulary)
    if (name := nearest_size(bought.parameters, sizes)) is not None:
        text += f"\nNearest beside this config: {name}, {format_count(sizes[name])} parameters."
    output().print(text, markup=False)


def _sizes_beside(config: Path, vocabulary: int) -> dict[str, int]:
    """Parameters of the configs in the folder of `config`; those that need what is not here are left out."""
    from gptlab.config import load_config
    from gptlab.model import build_model

    sizes = {}
    for path in sorted(config.parent.glob("*.yaml")) if config.is_file() else []:
        try:
            model = build_model(load_config(path), vocabulary, device="meta")
        except GptlabError:
            continue
        sizes[path.stem] = sum(p.numel() for p in model.parameters())
    return sizes


def _print_past(runs: Path) -> None:
    """How good earlier predictions were."""
    from gptlab.planning.records import median_ratios, past_predictions

    if past := past_predictions(runs):
        time, memory = median_ratios(past)
        output().print(
            f"\nPredicted ÷ actual of {len(past)} finished runs in {runs}/, median: "
            f"time {time:.2f}, peak memory {memory:.2f}",
            markup=False,
        )
