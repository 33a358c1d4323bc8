"""A few real steps of a run, to predict its time and memory: `python -m gptlab.training.probe FOLDER SECONDS BEGAN`.

Reads FOLDER/config.yaml, writes FOLDER/probe.json (`gptlab.planning.plan.Probe`); BEGAN is when the process was asked
for, in seconds since the epoch. In a process of its own, because the peak of a process's memory is never forgotten, and
with the functions that `gptlab.train` itself is made of, in their order: build, step, evaluate, save, conclude.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gptlab.config import RunConfig, load_config
from gptlab.errors import GptlabError
from gptlab.files import write_atomic
from gptlab.hardware.allocator import keep_freed_memory
from gptlab.hardware.device import describe, pick_device
from gptlab.hardware.memory import peak_memory
from gptlab.model.component import before_step
from gptlab.parallel import World
from gptlab.planning.plan import Probe
from gptlab.record.runfolder import WEIGHTS
from gptlab.run import save_weights
from gptlab.training.conclusion import write_views
from gptlab.training.loop import evaluate, save, step
from gptlab.training.setup import Job, build_job

_WARMUP, _FEWEST = 2, 4  # steps that are left out, and that are timed at least
_VALIDATION = 0.25  # of the probe's time
_GOLDEN = 0.6180339887  # multiples of it, less their whole part, fill 0 to 1 evenly however many there are


def probe(config: RunConfig, folder: Path, *, seconds: float, launched: float) -> Probe:
    """Steps of `config` for about `seconds`, in `folder`. `launched`: seconds that the process has run already.

    Raises GptlabError as training would: data that is missing, shapes that cannot work, memory that does not suffice.
    """
    quiet = config.log.model_copy(update={"tensorboard": False, "wandb": "off"})
    config = config.model_copy(update={"log": quiet})
    started = time.monotonic()
    device = pick_device(config.system.device)
    if device.type == "cpu":
        keep_freed_memory()
    job = build_job(config, World(), device, folder=folder / "run")
    startup = time.monotonic() - started
    times = _time_steps(job, _WARMUP + _FEWEST // 2, seconds / 2)
    validation_tokens, validation = _time_validation(job, _VALIDATION * seconds)
    # Steps after a validation, as a run has them: what a CPU's allocator keeps grows with the change of sizes.
    later = times[_WARMUP:] + _time_steps(job, _FEWEST // 2, seconds / 2) or times
    saving = _time(lambda: save(job))
    weights = _time(lambda: save_weights(job.layout.full_state(job.model), job.folder / WEIGHTS))
    memory = peak_memory(device)
    assert job.metrics is not None
    job.metrics.close()
    views = _time(lambda: write_views(job.folder))
    quartiles = statistics.quantiles(later, n=4) if len(later) > 1 else [later[0]] * 3
    hardware = describe(device)
    return Probe(
        hardware=hardware.get("gpu", hardware["cpu"]),
        accelerator=device.type != "cpu",
        dtype=str(job.dtype).removeprefix("torch."),
        micro_batch=job.micro_batch,
        launch_seconds=launched,
        startup_seconds=startup,
        warmup_seconds=max(0.0, sum(times[:_WARMUP]) - len(times[:_WARMUP]) * quartiles[1]),
        step_seconds=quartiles[1],
        step_low=quartiles[0],
        step_high=quartiles[2],
        steps=len(later),
        validation_tokens=validation_tokens,
        validation_seconds=validation,
        saving_seconds=saving,
        weights_seconds=weights,
        closing_seconds=views,
        peak_memory=memory,
    )


def _time_steps(job: Job, fewest: int, seconds: float) -> list[float]:
    """Seconds of each of `fewest` steps or more, a batch, for so long, to the end of the run at most.

    What changes over a run (windows that grow) is met as often as in all of it.
    """
    times: list[float] = []
    begun = time.monotonic()
    while job.step < job.config.total_steps and (len(times) < fewest or time.monotonic() - begun < seconds):
        before_step(job.model, job.step * _GOLDEN % 1)
        start = time.monotonic()
        result = step(job)
        row = {"step": result.step, "tokens": result.step * job.config.train.batch_tokens}
        row |= {"train/loss": result.loss.item(), "gradient_norm": result.gradient_norm.item()}
        job.step = result.step
        if job.metrics is not None:
            job.metrics.write([row])
        times.append((time.monotonic() - start) / result.batches)
    return times


def _time_validation(job: Job, seconds: float) -> tuple[int, float]:
    """Tokens of one validation of the run, and its seconds: measured on all of it, or on a part and scaled."""
    config, limit = job.config, job.config.eval.tokens
    sizes = [dataset.targets(limit) for dataset in job.validation.values()]

    def once(tokens: int) -> float:
        log, job.metrics = job.metrics, None  # a step is validated once in a log
        try:
            return _time(lambda: evaluate(job, tokens=tokens))
        finally:
            job.metrics = log

    # Of a mixture each source is validated on so many tokens; the smallest bounds what can be asked of all.
    batch = min(min(sizes), config.train.sequence_length * min(config.sequences_per_step, job.micro_batch))
    first = once(batch)
    share = min(min(sizes), batch * max(1, int(seconds / max(first, 1e-9))))
    taken = once(share) if share > batch else min(first, once(batch))
    return sum(sizes), taken * sum(sizes) / (share * len(sizes))


def _time(act: Callable[[], None]) -> float:
    start = time.monotonic()
    act()
    return time.monotonic() - start


def _main() -> None:
    folder, seconds, began = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    launched = time.time() - began
    try:
        found = probe(load_config(folder / "config.yaml"), folder, seconds=seconds, launched=launched)
    except GptlabError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    write_atomic(folder / "probe.json", json.dumps(dataclasses.asdict(found), indent=1))


if __name__ == "__main__":
    _main()
