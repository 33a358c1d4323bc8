"""The plan of a run: memory by kind, time and dollars, before it is trained.

Arithmetic on plain numbers. They come from `footprint` (counted on shapes) and `probe` (a few real steps), each in a
process that imports torch, and from the table of GPUs (`gptlab.hardware.gpus`).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

from gptlab.config import RunConfig
from gptlab.config.jsonfile import parse_json
from gptlab.hardware.gpus import Gpu

OVERHEAD_MINUTES = 60.0
"""What GPT-Lab's table of costs adds to the training itself: renting, installing, fetching data, looking at results."""
USABLE_MEMORY = 0.9
"""Of a card's memory: the rest goes to the driver's context, to libraries and to fragmentation."""
MATMUL_EFFICIENCY = 0.5
"""Of a card's data-sheet FLOP/s that matrix products of these sizes reach, compiled, in bfloat16."""
BANDWIDTH_EFFICIENCY = 0.7
"""Of a card's data-sheet bandwidth."""
SCALING_EFFICIENCY = 0.9
"""Of the speed of so many cards, where gradients are averaged over several."""
TIME_UNCERTAINTY = 1.5
"""A table's time is given as this factor either way: cards differ in clocks, cooling, drivers and neighbours."""
_TABLE_STARTUP = 60.0  # seconds: imports, building, compiling
_ACTIVATION_PASSES, _LOGIT_PASSES = 3, 4  # times that they travel: written, read again, and so their gradients


@dataclass(frozen=True)
class Footprint:
    """The memory of one process with `micro_batch` sequences at once, in bytes by kind, and the FLOPs of a token.

    `flops_per_token`: training FLOPs. `activations`: kept by the model for its backward pass. `logits`: what head and
    loss need beyond that at their peak, working memory included. `compiled`: estimated for torch.compile.
    """

    vocab_size: int
    parameters: int
    parameters_without_embeddings: int
    flops_per_token: float
    micro_batch: int
    compiled: bool
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def static(self) -> int:
        """Bytes that do not depend on the batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return self.static + self.activations + self.logits


def largest_fit(one: Footprint, two: Footprint, rows: int, limit: int) -> Footprint:
    """The footprint with the largest power-of-two share of `rows` sequences at once that needs at most `limit` bytes,
    or with one sequence. `one`, `two`: with one and two; bytes are linear in sequences."""

    def at(count: int) -> Footprint:
        sizes = {
            name: getattr(one, name) + (count - 1) * (getattr(two, name) - getattr(one, name))
            for name in ("activations", "logits")
        }
        return dataclasses.replace(one, micro_batch=count, **sizes)

    while rows > 1 and at(rows).total > limit:
        rows = -(-rows // 2)
    return at(rows)


@dataclass(frozen=True)
class Probe:
    """The measurements of a few real steps on this machine, in seconds; `step_low` and `step_high` are quartiles."""

    hardware: str
    accelerator: bool
    dtype: str
    micro_batch: int
    launch_seconds: float  # from the command to the call of train: Python and its imports
    startup_seconds: float  # from there to the first step: data, model, micro-batch, run folder
    warmup_seconds: float  # what the first steps took beyond later ones
    step_seconds: float  # median
    step_low: float
    step_high: float
    steps: int
    validation_tokens: int  # of one validation of the run
    validation_seconds: float  # of one validation of the run
    saving_seconds: float  # of one checkpoint
    weights_seconds: float  # of the final weights
    closing_seconds: float  # of what comes after the run's own clock: its table and picture
    peak_memory: int  # bytes; on a CPU what the process had resident, elsewhere what was allocated on the device


@dataclass(frozen=True)
class Price:
    """The price of one device: dollars an hour, the date it was seen, and the source."""

    dollars_per_hour: float
    priced: str = "given"
    source: str = "the command line"


@dataclass(frozen=True)
class Prediction:
    """What a plan predicts of a run. `seconds`: by the run's own clock, as facts.json has them in
    `wall_seconds`: all but imports and pictures."""

    hardware: str
    basis: str
    training_seconds: float
    seconds: float
    peak_memory: int
    dollars: float | None = None


@dataclass(frozen=True)
class Plan:
    """The plan of a run. Seconds and dollars are None where neither a probe nor a card tells the speed."""

    name: str
    hardware: str
    devices: int
    basis: Literal["probe", "table", "none"]
    footprint: Footprint
    tokens: int
    steps: int
    sequences_per_step: int
    validations: int
    peak_memory: int  # bytes, of one device or process
    memory_limit: int | None
    startup_seconds: float | None
    training_seconds: float | None
    validation_seconds: float | None
    saving_seconds: float | None
    outside_seconds: float  # of start-up and saving, what the run's own clock does not count (imports, pictures)
    spread: float  # the factor by which the time may be off, either way
    dollars_per_hour: float | None  # of all devices
    priced: str
    overhead_minutes: float
    assumptions: tuple[str, ...]
    growth: str = ""  # what is known of how many batches a step takes, where that is not one

    @property
    def flops(self) -> float:
        """Training FLOPs of the whole run."""
        return self.footprint.flops_per_token * self.tokens

    @property
    def seconds(self) -> float | None:
        """Of the whole process, from its start to its end."""
        parts = (self.startup_seconds, self.training_seconds, self.validation_seconds, self.saving_seconds)
        known = [part for part in parts if part is not None]
        return sum(known) if self.training_seconds is not None else None

    @property
    def dollars(self) -> float | None:
        """Of the run alone."""
        return None if None in (self.seconds, self.dollars_per_hour) else self.seconds * self.dollars_per_hour / 3600  # type: ignore[operator]

    @property
    def dollars_with_overhead(self) -> float | None:
        """(run + overhead) · rate, as GPT-Lab's table counts."""
        if self.dollars is None or self.dollars_per_hour is None:
            return None
        return self.dollars + self.overhead_minutes / 60 * self.dollars_per_hour

    @property
    def flops_per_second(self) -> float | None:
        """Training FLOP/s over all devices while it trains."""
        return self.flops / self.training_seconds if self.training_seconds else None

    def plain(self) -> dict[str, Any]:
        """As JSON has it: the fields, and what follows from them."""
        derived = ("flops", "seconds", "dollars", "dollars_with_overhead", "flops_per_second")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Plan:
        """The plan that `plain` wrote out. Raises ValueError where it is none."""
        names = {field.name for field in dataclasses.fields(cls)}
        mine = {name: value for name, value in values.items() if name in names}
        mine.setdefault("sequences_per_step", values.get("batch_rows"))  # as gptlab 0.3 wrote it
        return parse_json(json.dumps(mine), cls)

    def prediction(self) -> Prediction | None:
        """The prediction to compare with the run's facts; None where no time is predicted."""
        if self.seconds is None or self.training_seconds is None:
            return None
        wall = self.seconds - self.outside_seconds
        return Prediction(self.hardware, self.basis, self.training_seconds, wall, self.peak_memory, self.dollars)


Times = tuple[float | None, float | None, float | None, float | None]
"""Start-up, training, validation, saving: seconds."""


def plan_run(
    config: RunConfig,
    footprint: Footprint,
    *,
    probe: Probe | None = None,
    gpu: Gpu | None = None,
    devices: int = 1,
    price: Price | None = None,
    overhead_minutes: float = OVERHEAD_MINUTES,
    memory_limit: int | None = None,
    validation_tokens: int | None = None,
    growth: str = "",
) -> Plan:
    """The plan of one run: on this machine by its `probe`, on `devices` cards of the table's `gpu`, or in size alone.

    `price` takes the place of the card's own. `validation_tokens`: of one validation, where the data is not at hand
    the config's own number; None leaves validation out of a table's time, which is said. `growth`: as of `Plan`.
    """
    if gpu is not None and price is None:
        price = Price(gpu.dollars_per_hour, gpu.priced, gpu.source)
    times: Times = (None, None, None, None)
    assumptions: list[str] = []
    basis: Literal["probe", "table", "none"] = "none"
    spread, peak = 1.0, footprint.total
    if probe is not None:
        basis, times, spread, peak = "probe", _times_from_probe(config, probe), _spread(probe), probe.peak_memory
    elif gpu is not None:
        basis, spread = "table", TIME_UNCERTAINTY
        times = _times_from_data_sheet(config, footprint, gpu, devices, validation_tokens)
        assumptions = _assumptions(footprint, devices, validation_tokens)
    return Plan(
        name=config.name,
        hardware=probe.hardware if probe is not None else gpu.name if gpu is not None else "",
        devices=devices,
        basis=basis,
        footprint=footprint,
        tokens=config.total_steps * config.train.batch_tokens,
        steps=config.total_steps,
        sequences_per_step=config.sequences_per_step,
        validations=count_validations(config),
        peak_memory=peak,
        memory_limit=memory_limit,
        startup_seconds=times[0],
        training_seconds=times[1],
        validation_seconds=times[2],
        saving_seconds=times[3],
        outside_seconds=0.0 if probe is None else probe.launch_seconds + probe.closing_seconds,
        spread=spread,
        dollars_per_hour=None if price is None else price.dollars_per_hour * devices,
        priced="" if price is None else f"{price.priced}, {price.source}",
        overhead_minutes=overhead_minutes,
        assumptions=tuple(assumptions),
        growth=growth,
    )


def count_validations(config: RunConfig) -> int:
    """How often the run validates: before its first step where it does, every `eval.every` steps, and at its end."""
    every = config.eval.every
    return config.is_validated_at_start + 1 + ((config.total_steps - 1) // every if every else 0)


def count_checkpoints(config: RunConfig) -> int:
    """How often the run saves, at most: every `checkpoint.every` steps, with `checkpoint.best` at each validation, and
    at its end."""
    last, every = config.total_steps, config.checkpoint.every
    steps = {*range(every, last, every)} if every else set()
    if config.checkpoint.best and config.eval.every:
        steps |= {*range(config.eval.every, last, config.eval.every)}
    return len(steps) + 1


def _times_from_probe(config: RunConfig, probe: Probe) -> Times:
    return (
        probe.launch_seconds + probe.startup_seconds,
        probe.warmup_seconds + config.total_steps * probe.step_seconds,
        count_validations(config) * probe.validation_seconds,
        count_checkpoints(config) * probe.saving_seconds + probe.weights_seconds + probe.closing_seconds,
    )


def dollars_of_products(flops: float, gpu: Gpu) -> float:
    """What `flops` of matrix products cost on a card of the table, and nothing else: a training costs more."""
    return flops / (gpu.peak * MATMUL_EFFICIENCY) / 3600 * (gpu.dollars_per_hour or 0.0)


def _spread(probe: Probe) -> float:
    """How far the middle half of the steps lies from their median, as a factor."""
    low, middle, high = probe.step_low, probe.step_seconds, probe.step_high
    return max(high / middle, middle / low) if low > 0 else 1.0


def _times_from_data_sheet(
    config: RunConfig, footprint: Footprint, gpu: Gpu, devices: int, validation_tokens: int | None
) -> Times:
    """Time on a card that is not here: arithmetic and memory traffic, one after the other, each below its data sheet.

    A sum and not the larger of the two (the roofline of Williams et al. 2009, doi:10.1145/1498765.1498785), because
    what moves memory in a transformer, norms, residuals, optimizer, mostly does not overlap with its products.
    """
    rows, length = -(-config.sequences_per_step // devices), config.train.sequence_length
    pieces = -(-rows // footprint.micro_batch)
    compute = rows * length * footprint.flops_per_token / (gpu.peak * MATMUL_EFFICIENCY)
    moved = pieces * (_ACTIVATION_PASSES * footprint.activations + _LOGIT_PASSES * footprint.logits)
    moved += 2 * footprint.static  # the step reads weights, gradients and state, and writes them
    step = (compute + moved / (gpu.bandwidth * BANDWIDTH_EFFICIENCY)) / (SCALING_EFFICIENCY if devices > 1 else 1.0)
    forward = step / config.train.batch_tokens / 3  # the backward pass costs twice the forward's
    once = None if validation_tokens is None else validation_tokens * forward
    return _TABLE_STARTUP, config.total_steps * step, None if once is None else count_validations(config) * once, 0.0


def _assumptions(footprint: Footprint, devices: int, validation_tokens: int | None) -> list[str]:
    said = [
        f"matrix products at {MATMUL_EFFICIENCY:.0%} of the data sheet, memory at {BANDWIDTH_EFFICIENCY:.0%}; "
        f"the range is a factor of {TIME_UNCERTAINTY:g} either way"
    ]
    if footprint.compiled:
        said.append("compiled: what matrix products and attention put out is kept, the rest is computed again")
    if devices > 1:
        said.append(f"{SCALING_EFFICIENCY:.0%} of {devices} times the speed; every card holds the whole model")
    if validation_tokens is None:
        said.append("without validation: eval.tokens is null and the data set is not here to count")
    return said
