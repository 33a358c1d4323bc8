"""Units below file level and the engines that do them: not a byte depends on either, nor on kills."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptlab.data import Input, Reading, prepare
from gptlab.data.preparation import Engine, SubmittedError
from gptlab.data.preparation.units import plan_units, unit_documents
from gptlab.data.sources.resolve import iter_documents, resolve
from gptlab.errors import DataError

UNIT = 1 << 20


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def texts(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    words = np.array(["alpha", "bêta", "γάμμα", "delta", "日本", "one", "two", "\n"])
    return [" ".join(random.choice(words, random.integers(1, 60))) for _ in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One large file of each form that is cut, and one that is not."""
    folder, made = tmp_path_factory.mktemp("units"), texts(3000) * 8
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in made))
    (folder / "b.txt").write_text(" ".join(made[:15000]))
    pq.write_table(pa.table({"text": made[:9000]}), folder / "c.parquet", row_group_size=3000)
    (folder / "d.csv").write_text("text\n" + "\n".join(f'"{text}"' for text in made[:500]))
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"validation_fraction": 0.1},
        {"validation_tokens": 5000},
        {"num_shards": 5},
        {"limit_bytes": 1_500_000},
        {"reading": Reading(separator="\n")},
        {"reading": Reading(document_start="delta")},
    ],
    ids=str,
)
def test_one_process_two_and_any_size_of_unit_write_the_same(corpus: Path, tmp_path: Path, options: dict) -> None:
    inputs = [str(corpus / name) for name in ("a.jsonl", "b.txt", "c.parquet", "d.csv")]
    plain = {"tokenizer": "byte", "shard_size": 200_000, "workers": 1, **options}
    prepare(inputs, tmp_path / "stream", **plain)
    prepare(inputs, tmp_path / "one", **plain, engine=Engine(tasks=1), unit_bytes=UNIT)
    assert contents(tmp_path / "one") == contents(tmp_path / "stream")
    if "limit_bytes" not in options and "num_shards" not in options:
        prepare(inputs, tmp_path / "two", **plain, engine=Engine(tasks=2), unit_bytes=2 * UNIT)
        assert contents(tmp_path / "two") == contents(tmp_path / "stream")


def test_a_single_file_is_many_units_and_none_loses_a_document(corpus: Path) -> None:
    for name, least in (("a.jsonl", 3), ("b.txt", 2), ("c.parquet", 1), ("d.csv", 1)):
        sources = resolve([str(corpus / name)])
        for reading in (Reading(), Reading(document_start="delta")):
            units = plan_units([sources], reading, UNIT)
            assert len(units) >= least, name
            assert units == plan_units([sources], reading, UNIT)
            found = [doc.text for unit in reversed(units) for doc in [*unit_documents(unit, sources[0], reading)][::-1]]
            whole: list[str] = []
            for document in iter_documents([str(corpus / name)], reading=reading):
                if document.continues:
                    whole[-1] += document.text
                else:
                    whole.append(document.text)
            assert found[::-1] == whole, name


def test_row_groups_of_parquet_stay_together(corpus: Path) -> None:
    units = plan_units([resolve([str(corpus / "c.parquet")])], Reading(), 1)
    assert [unit.position for unit in units] == [[0, 0], [1, 0], [2, 0]]


def test_caps_and_weights_hold_in_units(corpus: Path, tmp_path: Path) -> None:
    inputs = [Input(str(corpus / "a.jsonl"), max_tokens=300_000, weight=0.5), Input(str(corpus / "b.txt"), weight=2)]
    options = {"tokenizer": "byte", "shard_size": 200_000, "workers": 1}
    prepare(inputs, tmp_path / "stream", **options)
    prepare(inputs, tmp_path / "units", **options, engine=Engine(tasks=1), unit_bytes=UNIT)
    assert contents(tmp_path / "units") == contents(tmp_path / "stream")


def test_killed_twice_it_does_only_what_is_missing(corpus: Path, tmp_path: Path) -> None:
    """The first kill takes everything, the second a worker alone, which is replaced."""
    inputs, options = [str(corpus / "a.jsonl")], {"tokenizer": "byte", "shard_size": 200_000, "workers": 1}
    prepare(inputs, tmp_path / "whole", **options)
    script = (
        "import sys\nfrom gptlab.data import prepare\nfrom gptlab.data.preparation import Engine\n"
        "if __name__ == '__main__':\n"
        f"    prepare({inputs!r}, {str(tmp_path / 'out')!r}, tokenizer='byte', shard_size=200_000,\n"
        "        engine=Engine(tasks=2), unit_bytes=1 << 18)\n"
    )
    (tmp_path / "script.py").write_text(script)
    units = tmp_path / ".out.partial" / "units"

    def started(least: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], stderr=subprocess.PIPE)
        while process.poll() is None and len(list(units.glob("unit_*.npz"))) < least:
            time.sleep(0.001)
        assert process.poll() is None
        return process

    process = started(1)
    process.kill()
    process.wait()
    time.sleep(0.5)  # its workers end with it
    first = {path.name: path.stat().st_mtime_ns for path in units.glob("unit_*.npz")}
    planned = len(json.loads((units / "plan.json").read_text())["units"])
    assert 0 < len(first) < planned
    process = started(len(first) + 1)
    for child in children(process.pid):
        os.kill(child, signal.SIGKILL)
    said = process.communicate()[1].decode()
    assert process.returncode == 0, said
    assert f"going on after {len(first)} of {planned} units" in said
    assert "a worker died" in said
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not units.exists()


def children(pid: int) -> list[int]:
    """Worker processes: those that Python spawned, its tracker of resources left out."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (entry / "stat").read_text(), (entry / "cmdline").read_text()
        except OSError:
            continue
        if int(status.rpartition(")")[2].split()[1]) == pid and "spawn_main" in command:
            found.append(int(entry.name))
    return found


def test_a_unit_that_is_there_is_not_done_again(corpus: Path, tmp_path: Path) -> None:
    """What was done by two tasks and lost by half is completed by one, and equal."""
    inputs, options = [str(corpus / "a.jsonl")], {"tokenizer": "byte", "shard_size": 200_000, "unit_bytes": UNIT}
    units = tmp_path / ".out.partial" / "units"

    class Stops(Engine):
        def run(self, job) -> None:
            super().run(job)
            raise DataError("stopped here")

    with pytest.raises(DataError, match=r"stopped here \(what is finished is kept in"):
        prepare(inputs, tmp_path / "out", **options, engine=Stops(tasks=1))
    done = sorted(units.glob("unit_*.npz"))
    for path in done[::2]:
        path.unlink()
    kept = {path: path.stat().st_ino for path in done[1::2]}
    with pytest.raises(DataError, match="stopped here"):
        prepare(inputs, tmp_path / "out", **options, engine=Stops(tasks=1))
    assert {path: path.stat().st_ino for path in kept} == kept
    prepare(inputs, tmp_path / "out", **options, engine=Engine(tasks=1))
    prepare(inputs, tmp_path / "whole", tokenizer="byte", shard_size=200_000, workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_damage_in_the_text_is_said_by_the_parent(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"text": \n')
    with pytest.raises(DataError, match="line 2: is no JSON"):
        prepare([str(tmp_path / "bad.jsonl")], tmp_path / "out", tokenizer="byte", engine=Engine(tasks=1))
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'gptlab[cluster-data]'")
def test_ray_writes_what_one_process_writes(corpus: Path, tmp_path: Path) -> None:
    inputs, options = [str(corpus / "a.jsonl")], {"tokenizer": "byte", "shard_size": 200_000}
    prepare(inputs, tmp_path / "one", **options, workers=1)
    prepare(inputs, tmp_path / "ray", **options, engine=Engine("ray", tasks=3), unit_bytes=UNIT)
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


needs_datatrove = pytest.mark.skipif(
    importlib.util.find_spec("datatrove") is None, reason="needs datatrove: pip install 'gptlab[cluster-data]'"
)


@needs_datatrove
def test_the_sbatch_script_does_the_units(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Slurm here: an `sbatch` of the test keeps the script, which is then run for each task of the array, with an
    `srun` that runs its command. What Slurm itself does with the script is not shown by it."""
    commands = tmp_path / "bin"
    commands.mkdir()
    kept = tmp_path / "script.sh"
    (commands / "sbatch").write_text(
        f'#!/bin/sh\nfor last; do :; done\n[ -f {kept} ] || cp "$last" {kept}\necho Submitted batch job 7\n'
    )
    (commands / "srun").write_text('#!/bin/sh\nshift 3\nexec "$@"\n')
    (commands / "scontrol").write_text("#!/bin/sh\necho here\n")
    for command in commands.iterdir():
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    inputs, options = [str(corpus / "a.jsonl")], {"tokenizer": "byte", "shard_size": 200_000}
    slurm = {"engine": Engine("slurm", 2, partition="cpu", time_limit="00:30:00"), "unit_bytes": UNIT}
    with pytest.raises(SubmittedError, match="Slurm's queue as job 7, 2 task"):
        prepare(inputs, tmp_path / "out", **options, **slurm)
    script = kept.read_text()
    for line in ("--partition=cpu", "--time=00:30:00", "--array=0-1", "--job-name=gptlab-prepare"):
        assert f"#SBATCH {line}\n" in script
    environment = {**os.environ, "SLURM_NODELIST": "here", "SLURM_JOB_ID": "7"}
    for task in ("0", "1"):
        done = subprocess.run(
            ["bash", str(kept)], env={**environment, "SLURM_ARRAY_TASK_ID": task}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    prepare(inputs, tmp_path / "out", **options, **slurm)
    prepare(inputs, tmp_path / "one", **options, workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def slurm_answers() -> bool:
    return shutil.which("sbatch") is not None and subprocess.run(["sinfo"], capture_output=True).returncode == 0


@pytest.mark.slurm
@needs_datatrove
@pytest.mark.skipif(not slurm_answers(), reason="needs a Slurm cluster: sinfo does not answer here")
def test_slurm_writes_what_one_process_writes(corpus: Path, tmp_path: Path) -> None:
    inputs, options = [str(corpus / "a.jsonl")], {"tokenizer": "byte", "shard_size": 200_000}
    listed = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, check=True)
    engine = Engine("slurm", 2, partition=listed.stdout.split()[0], time_limit="00:05:00")
    for _ in range(60):
        try:
            prepare(inputs, tmp_path / "out", **options, engine=engine, unit_bytes=UNIT)
            break
        except SubmittedError:
            time.sleep(5)
    prepare(inputs, tmp_path / "one", **options, workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--engine", "rya"], "--engine rya: no such engine; did you mean 'ray'?"),
        (["--engine", "local", "--tasks", "0"], "--tasks 0: must lie between 1 and 100,000"),
        (["--tasks", "2"], "--tasks is of an engine"),
        (["--engine", "local", "--workers", "2"], "--workers and --engine both say who tokenizes"),
        (["--engine", "slurm"], "which partition? name it with --partition NAME"),
        (["--engine", "local", "--partition", "cpu"], "--partition is one of Slurm's"),
        (["--step", "MinHsh"], "--step MinHsh: no such step; did you mean 'MinHash'?"),
        (["--step", "{use: MinHash, band: 3}"], "--step MinHash: has no argument 'band'; did you mean 'bands'?"),
        (["--step", "{use: MinHash, bands: 0}"], "--step MinHash: bands: Input should be greater than or equal to 1"),
        (["--step", "{use: MinHash"], "is no YAML"),
        (["--step", "[1]"], "names no step"),
        (["--step", "MinHash", "--step", "MinHash"], "is named twice"),
        (["--step", "ExactDuplicates", "--step", "MaskPII"], "name it before ExactDuplicates"),
        (["--step", "{use: Language, languages: [english]}"], "two small letters"),
        (["--step", "{use: Decontaminate, tasks: [hellaswg]}"], "no task 'hellaswg'; did you mean 'hellaswag'?"),
    ],
)
@needs_datatrove
def test_refused_in_a_line(tmp_path: Path, refused: Callable[..., str], arguments: list[str], problem: str) -> None:
    (tmp_path / "a.txt").write_text("words")
    base = ["data", "prepare", "--input", "a.txt", "--tokenizer", "byte", "--out", "out"]
    assert problem in refused(*base, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_streams_and_ids_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([256, 1, 2, 3], dtype=np.uint16))
    with pytest.raises(DataError, match="holds token ids, and engine and step are for text"):
        prepare([str(tmp_path / "ids.npy")], tmp_path / "out", tokenizer="byte", engine=Engine())


@pytest.mark.parametrize(("module", "arguments"), [("datatrove", ["--step", "C4"]), ("ray", ["--engine", "ray"])])
def test_a_missing_extra_is_named(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, module: str, arguments: list[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == module else find(name, *a))
    (tmp_path / "a.txt").write_text("words")
    line = refused("data", "prepare", "--input", "a.txt", "--tokenizer", "byte", "--out", "out", *arguments)
    assert f"needs {module}: pip install 'gptlab[cluster-data]'" in line
