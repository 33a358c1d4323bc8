"""Benchmarks while training: what a model that is not finished answers to questions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gptlab.config.schema import Evaluate
from gptlab.errors import ConfigError, did_you_mean
from gptlab.evals import benchmark_names
from gptlab.evals.benchmark import Options, check_benchmarks, evaluate, find_benchmark
from gptlab.parallel import World
from gptlab.run import Run


def require_tasks(names: Sequence[str], world: World) -> None:
    """Know before training that `names` are benchmarks, and have their questions here.

    Raises ConfigError for a name that is none, DataError where its questions are not to be had. Benchmarks of the run's
    own data are refused: a validation reads them already.
    """
    known = benchmark_names(published=True)
    if odd := [name for name in names if name not in known]:
        raise ConfigError(f"eval.tasks: no published benchmark {odd[0]!r}; {did_you_mean(odd[0], known)}")
    if world.is_main:
        check_benchmarks(names, Options())
    if names:
        world.barrier()  # the main process may have downloaded what the others are about to read


def task_results(run: Run, asked: Evaluate, world: World) -> dict[str, float]:
    """The numbers that each task of `eval.tasks` shows, as val/TASK/NUMBER, on its first `eval.limit` questions.

    `run`: the model as it is now. The processes of `world` share the questions.
    """
    training = run.model.training
    run.model.eval()
    found = {}
    # Questions have all lengths: a compiled model would be compiled again for batch after batch.
    with torch.compiler.set_stance("force_eager"):
        for name in asked.tasks:
            results = evaluate(run, name, Options(limit=asked.limit, world=world)).results
            shown = {column.key: results[column.key] for column in find_benchmark(name).columns}
            found |= {f"val/{name}/{key}": value for key, value in shown.items() if value is not None}
    run.model.train(training)
    return found
