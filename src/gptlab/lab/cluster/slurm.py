"""Slurm, through submitit: a job is a task a process on every node, several jobs are the elements of an array."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptlab.errors import GptlabError, option
from gptlab.lab.cluster.jobs import Job, write_configs
from gptlab.lab.cluster.spec import LOCAL, Cluster
from gptlab.lab.cluster.work import Work

_LOGS = "%j"  # submitit's folder of a job, named by the job's id


def script(jobs: Sequence[Job], cluster: Cluster, place: Path, name: str) -> str:
    """The text that sbatch would be given for `jobs`, kept in `place`. Nothing is written, and no Slurm is needed."""
    executor = _executor(cluster, place, name, script_only=True)
    if len(jobs) > 1:
        executor.parameters["map_count"] = len(jobs)
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text


def submit(jobs: Sequence[Job], cluster: Cluster, place: Path, name: str) -> list[str]:
    """Submit `jobs`; the ids of all, in their order. `place` is a new folder on a disk that the nodes see too.

    Raises GptlabError where there is no Slurm here, or sbatch refuses; nothing is left of `place` then.
    """
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise GptlabError(
                f"no {program} on this machine; submit on your cluster's login node, look at the script "
                f"with {option('dry_run', True)}, or train here with {option('cluster', LOCAL)}"
            )
    executor = _executor(cluster, place, name)
    write_configs(jobs, place)
    try:
        with executor.batch():
            submitted = [executor.submit(Work(job.label, job.commands(place), job.question)) for job in jobs]
        return [str(job.job_id) for job in submitted]
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        if isinstance(error, FailedJobError | FailedSubmissionError | subprocess.SubprocessError):
            said = [line for line in str(error).splitlines() if "error" in line.lower()] or str(error).splitlines()
            why = said[0].strip() if said else type(error).__name__
            raise GptlabError(f"sbatch refused the job: {why}; mend the cluster file") from None
        raise


def log_of(job_id: str, place: Path) -> Path:
    """Where the first process of a job writes what it says."""
    return place / f"{job_id}_0_log.out"


def _executor(cluster: Cluster, place: Path, name: str, *, script_only: bool = False) -> Any:
    """submitit's executor, told what the cluster file says. Raises GptlabError where submitit is not installed."""
    try:
        from submitit import SlurmExecutor
    except ImportError:
        raise GptlabError("Slurm is spoken to through submitit: pip install 'gptlab[cluster]'") from None

    class Writer(SlurmExecutor):
        """Writes scripts on a machine without Slurm."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    executor = (Writer if script_only else SlurmExecutor)(folder=place, max_num_timeout=cluster.requeues)
    executor.update_parameters(**parameters(cluster, name))
    return executor


def parameters(cluster: Cluster, name: str) -> dict[str, Any]:
    """What submitit is told, for jobs called `name`."""
    gpus: int | str | None = cluster.gpus_per_node or None
    if cluster.gpu_type is not None:
        gpus = f"{cluster.gpu_type}:{gpus}"
    # `requeue`: clusters differ in whether a job may queue again without having said so
    further: dict[str, Any] = {"requeue": True, **cluster.sbatch}
    if cluster.memory is not None:
        further["mem"] = cluster.memory
    return {
        "job_name": name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": cluster.minutes,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.processes,
        "cpus_per_task": cluster.cpus_per_task,
        "gpus_per_node": gpus,
        "signal_delay_s": cluster.grace_seconds,
        "setup": cluster.setup or None,
        "stderr_to_stdout": True,
        "wckey": None,
        # srun no longer takes the cores from sbatch, and a process that fails must not leave the others waiting
        "srun_args": [f"--cpus-per-task={cluster.cpus_per_task}", "--kill-on-bad-exit=1"],
        "additional_parameters": {key: value for key, value in further.items() if value is not False},
        **({} if cluster.at_once is None else {"array_parallelism": cluster.at_once}),
    }
