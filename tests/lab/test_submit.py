"""`gptlab submit` without a cluster: cluster files, scripts, jobs as processes here, and what people get wrong."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import TINY, gated, gptlab, gptlab_here, make_data, only_run, rows

from gptlab.cli import main
from gptlab.errors import ConfigError
from gptlab.lab.cluster.spec import TEMPLATE, Cluster, read_cluster
from gptlab.lab.cluster.work import Work

STATEMENT = gated([1, 2, 3], minimum=2)
Mistake = Callable[..., str]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def place(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, a config, an experiment and a cluster file, as the working folder."""
    (tmp_path / "data").symlink_to(corpus)
    (tmp_path / "base.yaml").write_text(TINY.replace("5120", "2560") + "data: {path: data}\n")
    (tmp_path / "experiments/e").mkdir(parents=True)
    (tmp_path / "experiments/e/experiment.yaml").write_text(STATEMENT)
    (tmp_path / "cluster.yaml").write_text("{minutes: 30, memory: 16 gb}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- the cluster file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{partion: gpu}", "cluster.yaml:1: partion: unknown key 'partion'; did you mean 'partition'?"),
        ("{minutes: 0}", "cluster.yaml:1: minutes: 0 does not fit: expected a number greater than 0"),
        ("{kind: pbs}", "'pbs' does not fit: expected 'slurm' or 'local'"),
        ("{memory: lots}", "expected an amount of memory such as 64GB"),
        ("{gpu_type: a100}", "gpu_type: no GPU is asked for; set gpus_per_node"),
        ("{minutes: 2, grace_seconds: 120}", "grace_seconds: is as long as the job's minutes; lower it"),
        ("{sbatch: {time: 60}}", "sbatch.time: is set by the key minutes; give it there"),
        ("{sbatch: {--exclusive: true}}", "is no option of sbatch; write it without dashes in front"),
        ('{setup: ["a\\nb"]}', "expected one line of text"),
        ("{kind: local, partition: gpu}", "partition: is for a scheduler, and kind is local; leave it out"),
        ("{kind: local, nodes: 2}", "nodes: this machine is one"),
        ("[slurm]", "a config is a mapping"),
    ],
)
def test_what_is_wrong_in_a_cluster_file_is_said(place: Path, text: str, expected: str, mistake: Mistake) -> None:
    (place / "cluster.yaml").write_text(text)
    assert expected in mistake("submit", "base.yaml", "--cluster", "cluster.yaml", "--dry-run")


def test_a_file_that_is_not_there_and_one_that_is_none(place: Path, mistake: Mistake) -> None:
    said = mistake("submit", "base.yaml", "--cluster", "nowhere.yaml")
    assert "--cluster nowhere.yaml: no cluster file (nothing is there); `gptlab new cluster` writes one" in said
    assert "no cluster file (it is a folder)" in mistake("submit", "base.yaml", "--cluster", "experiments")


def test_the_template_is_a_cluster_file_and_is_not_written_over(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mistake: Mistake
) -> None:
    gptlab_here(monkeypatch, capsys, "new", "cluster", "--out", "new.yaml")
    assert read_cluster("new.yaml").gpus_per_node == 1
    assert "something is there already" in mistake("new", "cluster", "--out", "new.yaml")
    named = {line.partition(":")[0] for line in TEMPLATE.splitlines() if not line.startswith("#")}
    assert named <= set(Cluster.model_fields)


def test_a_memory_is_written_as_sbatch_reads_it() -> None:
    assert [Cluster.model_validate({"memory": text}).memory for text in ("64GB", "64 gb", "64G", "512M")] == [
        *("64G", "64G", "64G", "512M")
    ]
    assert Cluster(gpus_per_node=4).processes == 4
    assert Cluster(gpus_per_node=4, processes_per_node=2).processes == 2
    with pytest.raises(ConfigError, match="no cluster file"):
        read_cluster("nowhere")


# ---------------------------------------------------------------- the script


def script_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str, text: str
) -> tuple[dict[str, str], list[str]]:
    """The options and the other lines of the script that a cluster file makes."""
    Path("cluster.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["gptlab", "submit", *arguments, "--cluster", "cluster.yaml", "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    assert not ended.value.code, captured.err
    lines = captured.out.splitlines()
    options = [shlex.split(line.removeprefix("#SBATCH --"))[0] for line in lines if line.startswith("#SBATCH ")]
    assert not Path("runs").exists()
    return {o.partition("=")[0]: o.partition("=")[2] for o in options}, [ln for ln in lines if ln and ln[0] != "#"]


def test_a_script_asks_for_what_the_file_says(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")  # no Slurm is needed to look at a script
    text = """
partition: gpu
account: mine
nodes: 2
gpus_per_node: 4
gpu_type: a100
cpus_per_task: 8
memory: 128GB
minutes: 90
grace_seconds: 60
setup: [module load cuda]
sbatch: {constraint: ib&fast, exclusive: true, requeue: true}
"""
    options, lines = script_of(monkeypatch, capsys, "base.yaml", text=text)
    wanted = {
        "partition": "gpu",
        "account": "mine",
        "nodes": "2",
        "ntasks-per-node": "4",
        "gpus-per-node": "a100:4",
        "cpus-per-task": "8",
        "mem": "128G",
        "time": "90",
        "signal": "USR2@60",
        "constraint": "ib&fast",
        "exclusive": "",
        "requeue": "",
        "job-name": "base",
        "open-mode": "append",
    }
    assert {key: options.get(key) for key in wanted} == wanted
    assert "array" not in options
    assert "module load cuda" in lines
    (command,) = [line for line in lines if line.startswith("srun ")]
    assert "--cpus-per-task=8" in command
    assert "--kill-on-bad-exit=1" in command


def test_an_experiment_is_an_array_of_what_it_lacks(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, _ = script_of(monkeypatch, capsys, "experiments/e", text="{at_once: 2}")
    assert options["array"] == "0-5%2"  # two arms, three seeds
    options, _ = script_of(monkeypatch, capsys, "experiments/e", "--seeds", "1", text="{}")
    assert options["array"] == "0-1%2"


# ---------------------------------------------------------------- what people get wrong


def test_a_machine_without_slurm_and_one_without_the_extra(
    place: Path, mistake: Mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        assert "no sbatch on this machine" in mistake("submit", "base.yaml", "--cluster", "cluster.yaml")
    monkeypatch.setitem(sys.modules, "submitit", None)
    said = mistake("submit", "base.yaml", "--cluster", "cluster.yaml", "--dry-run")
    assert "pip install 'gptlab[cluster]'" in said


def test_options_that_are_not_for_this(place: Path, mistake: Mistake) -> None:
    assert "--seeds is for an experiment" in mistake("submit", "base.yaml", "--cluster", "local", "--seeds", "2")
    assert "--set changes a config" in mistake("submit", "experiments/e", "--cluster", "local", "--set", "seed=2")
    assert "no config" in mistake("submit", "experiments/none", "--cluster", "local")


# ---------------------------------------------------------------- here


@pytest.mark.slow
def test_two_processes_here_train_what_one_does(place: Path, mistake: Mistake) -> None:
    (place / "two.yaml").write_text("{kind: local, processes_per_node: 2}\n")
    said = gptlab("submit", "base.yaml", "--cluster", "two.yaml", cwd=place).stderr
    run = only_run(place)
    assert f"next: gptlab eval runs/{run.name}" in said
    gptlab("train", "base.yaml", "--out", "alone", cwd=place)
    for one, other in zip(rows(place / "alone"), rows(run), strict=True):
        loss = "train/loss" if "train/loss" in one else "val/loss"
        assert other[loss] == pytest.approx(one[loss], abs=1e-5)
    assert "is finished already" in mistake("submit", "base.yaml", "--cluster", "two.yaml")


@pytest.mark.slow
def test_an_experiment_here_trains_what_is_needed_and_then_only_wants_its_verdict(place: Path) -> None:
    """The third seed is in the queue, and is not trained once the arm has its verdict after two."""
    said = gptlab("submit", "experiments/e", "--cluster", "local", cwd=place).stderr
    finished = sorted(path.parent.name.rpartition("-")[2] for path in (place / "runs").glob("[!.]*/facts.json"))
    verdict = gptlab("run", "experiments/e", cwd=place).stdout
    assert "gated: " in verdict
    decided = "after 2 seeds" in verdict
    assert finished == ["seed1", "seed1", "seed2", "seed2", *([] if decided else ["seed3", "seed3"])]
    assert said.count("no longer needed") == (2 if decided else 0)
    again = gptlab("submit", "experiments/e", "--cluster", "local", cwd=place, check=False)
    if len(finished) == 6 or decided:
        assert again.returncode == 2
        assert "has every run that it needs" in again.stderr


@pytest.mark.slow
def test_a_call_that_fails_ends_a_job_and_its_later_calls_are_not_made(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    world = {"RANK": "0", "WORLD_SIZE": "1"}
    wrong = ("train", "base.yaml", "--set", "train.tokns=1")
    assert Work("a run", (wrong, ("--version",))).run(world) == 2
    assert "gptlab 0" not in capfd.readouterr().out
    assert Work("a run", (("--version",), ("--version",))).run(world) == 0
    assert capfd.readouterr().out.count("gptlab 0") == 2
    assert Work("a run", (("--version",), ("--version",))).run(world | {"RANK": "1"}) == 0
    assert capfd.readouterr().out.count("gptlab 0") == 1  # the first process alone evaluates
