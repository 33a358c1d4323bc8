"""The cluster file: what a job may ask a scheduler for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import BeforeValidator, Field

from gptlab.config.messages import broken_rule, expected, validated
from gptlab.config.numbers import BOUNDS
from gptlab.config.schema import PositiveInteger, Section
from gptlab.config.types import Boolean, Integer, Text
from gptlab.config.yamlfile import read_yaml
from gptlab.errors import ConfigError, option
from gptlab.files import what_is_there

LOCAL = "local"
"""In the place of a cluster file: this machine."""

_MEMORY = re.compile(r"[1-9]\d*[KMGT]")
_NAME = re.compile(r"[a-z][a-z0-9-]*")
_OURS = {
    "account": "account",
    "array": "at_once",
    "cpus-per-task": "cpus_per_task",
    "gpus-per-node": "gpus_per_node",
    "mem": "memory",
    "nodes": "nodes",
    "ntasks-per-node": "processes_per_node",
    "partition": "partition",
    "qos": "qos",
    "signal": "grace_seconds",
    "time": "minutes",
}
"""sbatch's options that a key of ours sets."""
_HERE = {"kind", "nodes", "gpus_per_node", "processes_per_node", "at_once"}
"""The keys that mean something on this machine too."""


def _memory(value: object) -> object:
    """`64GB`, `64 GB` and `64g` as sbatch writes it, 64G."""
    text = re.sub(r"\s|(?<=[KMGT])B$", "", value.upper()) if isinstance(value, str) else value
    if value is not None and not (isinstance(text, str) and _MEMORY.fullmatch(text)):
        raise expected("an amount of memory such as 64GB")
    return text


def _one_line(value: object) -> object:
    if isinstance(value, str) and not value.isprintable():
        raise expected("one line of text")
    return value


Line = Annotated[Text, BeforeValidator(_one_line)]


class Cluster(Section):
    """A cluster file: where jobs go, and what each of them asks for."""

    kind: Literal["slurm", "local"] = Field("slurm", description="slurm, or local: processes on this machine")
    partition: Line | None = Field(None, description="Slurm's partition; null: its default")
    account: Line | None = Field(None, description="what the hours are booked on")
    qos: Line | None = Field(None, description="Slurm's quality of service")
    nodes: Annotated[Integer, Field(gt=0, le=BOUNDS["processes"])] = Field(1, description="machines a job")
    gpus_per_node: Annotated[Integer, Field(ge=0, le=64)] = Field(0, description="GPUs of each machine")
    gpu_type: Annotated[Text, Field(pattern=r"^[\w.-]+$")] | None = Field(
        None, description="which, as Slurm calls it, such as a100"
    )
    processes_per_node: Annotated[Integer, Field(gt=0, le=1024)] | None = Field(
        None, description="processes that train on each machine; null: one a GPU, or one"
    )
    cpus_per_task: PositiveInteger = Field(1, description="CPU cores of each process")
    memory: Annotated[Text | None, BeforeValidator(_memory)] = Field(
        None, description="of each machine, such as 64GB; null: Slurm's default"
    )
    minutes: Annotated[Integer, Field(gt=0, le=BOUNDS["minutes"])] = Field(
        60, description="how long a job may take; one that needs longer saves, queues again and goes on"
    )
    grace_seconds: Annotated[Integer, Field(ge=10, le=3600)] = Field(
        120, description="how long before that it is told to save"
    )
    requeues: Annotated[Integer, Field(ge=0, le=10_000)] = Field(
        20, description="how often a job whose minutes are over may queue again"
    )
    at_once: PositiveInteger | None = Field(None, description="jobs of an experiment at once; null: all of them")
    setup: list[Line] = Field([], description="shell lines before the job's own, such as `module load cuda`")
    sbatch: dict[str, Boolean | Integer | Line] = Field(
        {}, description="further options of sbatch, such as {constraint: ib}"
    )

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Cluster:
        if self.kind == "local" and (odd := sorted(self.model_fields_set - _HERE)):
            raise broken_rule("is for a scheduler, and kind is local; leave it out", key=odd[0])
        if self.kind == "local" and self.nodes > 1:
            raise broken_rule("this machine is one; leave it out, or set processes_per_node", key="nodes")
        if self.gpu_type is not None and not self.gpus_per_node:
            raise broken_rule("no GPU is asked for; set gpus_per_node", key="gpu_type")
        if self.grace_seconds >= 60 * self.minutes:
            raise broken_rule("is as long as the job's minutes; lower it", key="grace_seconds")
        for name in self.sbatch:
            if name in _OURS:
                raise broken_rule(f"is set by the key {_OURS[name]}; give it there", key=f"sbatch.{name}")
            if not _NAME.fullmatch(name):
                raise broken_rule("is no option of sbatch; write it without dashes in front", key=f"sbatch.{name}")
        return self

    @property
    def processes(self) -> int:
        """Processes that train on each machine."""
        return self.processes_per_node or max(1, self.gpus_per_node)


def read_cluster(source: str) -> Cluster:
    """The cluster file at `source`, or this machine where that is `local`.

    Raises ConfigError, with file and line, for what is wrong in it, and where there is none.
    """
    if source == LOCAL:
        return Cluster(kind="local")
    path = Path(source)
    if not path.is_file():
        raise ConfigError(
            f"{option('cluster')} {source}: no cluster file ({what_is_there(path)}); `gptlab new cluster` writes one, "
            f"and {option('cluster', LOCAL)} is this machine"
        )
    values, origins = read_yaml(path)
    return validated(Cluster, values, origins, file=path)


TEMPLATE = """\
# What a job may ask a Slurm cluster for: gptlab submit CONFIG --cluster {name}
# Your cluster's manual names partitions and accounts; `sinfo` lists partitions, `sacctmgr show assoc` accounts.
kind: slurm
partition: null       # such as gpu; null: the default one
account: null         # what the hours are booked on, where that is asked for
nodes: 1              # machines a job
gpus_per_node: 1      # of each; one process trains on each GPU
gpu_type: null        # such as a100, where there are several kinds
cpus_per_task: 4      # cores of each process
memory: 32GB          # of each machine
minutes: 240          # a job that needs longer saves, queues again and goes on
at_once: 4            # jobs of an experiment at once
setup: []             # shell lines before the job's own, such as [module load cuda]
sbatch: {{}}            # further options, such as {{constraint: ib, mail-type: END}}
"""
"""A cluster file to begin with; `name` is its own."""
