"""`gptlab submit`: a run, or the runs of an experiment, on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptlab.cli.data import bring_data
from gptlab.cli.options import Overrides, Prepare, complete_config, load_single
from gptlab.console import output, say, waiting
from gptlab.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptlab.lab.cluster.jobs import Job
    from gptlab.lab.runs.store import Store


def submit(
    source: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG|EXPERIMENT",
            help="a YAML file or a name of `gptlab config list`; or an experiment's folder",
            autocompletion=complete_config,
        ),
    ],
    cluster: Annotated[str, typer.Option(help="a cluster file (`gptlab new cluster` writes one), or local")],
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    seeds: Annotated[int | None, typer.Option(min=1, help="of an experiment: no more than the first so many")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the script, and submit nothing")] = False,
    prepare: Prepare = False,
) -> None:
    """Train a run, or every run that an experiment still needs, as jobs of a cluster; `gptlab run` judges them."""
    from gptlab.lab.cluster.jobs import submission_folder
    from gptlab.lab.cluster.local import run_here
    from gptlab.lab.cluster.slurm import log_of, script
    from gptlab.lab.cluster.slurm import submit as submit_to_slurm
    from gptlab.lab.cluster.spec import read_cluster
    from gptlab.lab.runs.store import Store

    asked, store = read_cluster(cluster), Store()
    name, jobs = _jobs(source, overrides, seeds, store, prepare=prepare)
    place, local = submission_folder(name, store), asked.kind == "local"
    if dry_run:
        _show(jobs, place) if local else output().print(
            script(jobs, asked, place, name), markup=False, highlight=False, soft_wrap=True, end=""
        )
        return
    if local:
        run_here(jobs, asked, place)
        ended = "next"
    else:
        ids = submit_to_slurm(jobs, asked, place, name)
        first, several = ids[0].partition("_")[0], f", an array of {len(ids)}" if len(ids) > 1 else ""
        say(f"submitted job {first}{several}; `squeue --me` shows it, `scancel {first}` ends it")
        say(f"the first one writes to {log_of(ids[0], place)}")
        ended = "when it has ended"
    if jobs[0].question is not None:
        say(f"{ended}: gptlab run {source}")
    else:
        say(f"{ended}: gptlab eval {jobs[0].folder}")


def _jobs(
    source: str, overrides: list[str], seeds: int | None, store: Store, *, prepare: bool
) -> tuple[str, Sequence[Job]]:
    """The name of what is asked for, and its jobs. Raises GptlabError where there is nothing to train."""
    from gptlab.lab.cluster.jobs import job_of_config, jobs_of_experiment
    from gptlab.lab.experiment.spec import load_experiment, read_statement

    if not (Path(source) / "experiment.yaml").is_file():
        if seeds is not None:
            raise ConfigError(f"--seeds is for an experiment, and {source} is none; --set seed=N sets that of a run")
        config = load_single(source, overrides)
        bring_data([config], prepare)
        return config.name, [job_of_config(config, store)]
    if overrides:
        raise ConfigError(f"--set changes a config, and {source} is an experiment; change its experiment.yaml")
    bring_data([read_statement(source)[1]], prepare)
    experiment = load_experiment(source)
    with waiting(f"reading the runs of {source}"):
        jobs = jobs_of_experiment(experiment, store, seeds=seeds)
    if (grade := experiment.statement.metric.grade) is not None:
        grade.request.check_ready()
    return experiment.name, jobs


def _show(jobs: Sequence[Job], place: Path) -> None:
    """The calls of each job, as a shell would make them."""
    import shlex

    for job in jobs:
        for command in job.commands(place):
            output().print(f"gptlab {shlex.join(command)}", markup=False, highlight=False, soft_wrap=True)
