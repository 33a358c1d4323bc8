"""Every file of ours that a person can edit, edited at random: no traceback, and an error or the same numbers.

2,000 mutations (types, missing and extra keys, depth, encodings, truncation, doubled and reordered rows), all in this
process: a reader may refuse with a GptlabError, or read the file; nothing else.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, make_data

import gptlab
from gptlab.config import load_config
from gptlab.data.dataset import TokenDataset, info
from gptlab.errors import GptlabError
from gptlab.lab.experiment.spec import load_experiment
from gptlab.lab.report.compare import read_runs
from gptlab.lab.report.registry import list_experiments, list_runs
from gptlab.lab.runs.store import Store
from gptlab.lab.studies.noise import NoiseEstimate, VarianceComponent, read_noise, write_noise
from gptlab.planning.plan import Prediction
from gptlab.planning.records import kept_plan, read_prediction, write_prediction
from gptlab.record.evaluation import Evaluation, read_evaluation
from gptlab.record.facts import read_facts
from gptlab.record.metrics import read_columns, read_metrics
from gptlab.record.runfolder import Failure, read_failure, read_sessions, state, write_failure
from gptlab.systems.checkpoint import read_state, verify
from gptlab.tokenizer import load_tokenizer

MUTATIONS = 2_000
WRONG: list[Any] = [None, True, -1, 10**30, 1e308, "text", "", [], {}, [[]], {"a": 1}, 0.5, "\u0000", "é"]
EXPERIMENT = """\
hypothesis: a gate helps
baseline: ../../config.yaml
arms: {gated: {model: {block: {mlp: SwiGLU}}}}
seeds: [1, 2, 3]
metric: loss
decision: {smallest_effect: 0.01}
tune: {optimizer.lr: [x0.5, x1]}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a run with everything that a run folder can hold, an experiment, and what the lab keeps beside."""
    folder = tmp_path_factory.mktemp("files")
    make_data(folder, tokens=2000)
    (folder / "config.yaml").write_text(TINY.replace("5120", "1024") + "data: {path: data}\n")
    (folder / "experiments/e").mkdir(parents=True)
    (folder / "experiments/e/experiment.yaml").write_text(EXPERIMENT)
    (folder / "experiments/e/report.json").write_text('{"schema": 1, "hypothesis": "h", "arms": [], "runs": 3}')
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = gptlab.train(load_config("config.yaml"), folder=folder / "runs/run")
        assert before != folder
    Evaluation("topk", {"top_1": 0.1, "top_5": 0.2, "top_10": 0.3}, {}, {"step": 4}).write(
        run.folder / "evals/topk.json"
    )
    write_failure(run.folder, Failure("ConfigError", "no"))
    write_prediction(run.folder, Prediction("cpu", "probe", 1.0, 2.0, 10, None))
    part = VarianceComponent(0.1, 0.05, 0.2, 3)
    write_noise(Store(folder / "runs"), NoiseEstimate("n", "0123abcd", "loss", {"a": [1.0, 2.0]}, {"total": part}))
    return folder


def readers(place: Path) -> list[tuple[str, Callable[[], object]]]:
    """A file, and everything that reads it."""
    run, store = place / "runs/run", Store(place / "runs")
    checkpoint = next((run / "checkpoints").iterdir()).relative_to(place)
    return [
        ("runs/run/facts.json", lambda: (read_facts(run), list(list_runs(store)))),
        ("runs/run/env.json", lambda: (read_sessions(run), list(list_runs(store)))),
        ("runs/run/failed.json", lambda: (read_failure(run), state(run))),
        ("runs/run/plan.json", lambda: read_prediction(run)),
        ("runs/run/metrics.jsonl", lambda: (read_metrics(run / "metrics.jsonl"), list(list_runs(store)))),
        ("runs/run/metrics.jsonl", lambda: read_columns(run / "metrics.jsonl", ["step", "val/loss", "tokens"])),
        ("runs/run/evals/topk.json", lambda: read_evaluation(run, "topk")),
        ("runs/run/config.yaml", lambda: (load_config(run), read_runs([run]))),
        (f"{checkpoint}/state.json", lambda: read_state(place / checkpoint)),
        (f"{checkpoint}/manifest.json", lambda: verify(place / checkpoint)),
        ("data/dataset.json", lambda: (info(place / "data"), TokenDataset.open(place / "data", "train"))),
        ("data/tokenizer/meta.json", lambda: load_tokenizer(place / "data/tokenizer")),
        ("data/tokenizer/tokenizer.json", lambda: load_tokenizer(place / "data/tokenizer")),
        ("config.yaml", lambda: load_config(place / "config.yaml")),
        ("experiments/e/experiment.yaml", lambda: load_experiment(place / "experiments/e")),
        ("experiments/e/report.json", lambda: list_experiments(place / "experiments", store)),
        ("runs/.noise/0123abcd.json", lambda: read_noise(store, "0123abcd")),
        ("runs/.plans/0123abcd.json", lambda: kept_plan(place / "runs", "0123abcd")),
    ]


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(one for key, item in items for one in places_in(item, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], draw: random.Random) -> Any:
    """`value` with something else, nothing, or something more at `path`."""
    if not path:
        return draw.choice(WRONG)
    copy = json.loads(json.dumps(value))
    at = copy
    for key in path[:-1]:
        at = at[key]
    match draw.randrange(3):
        case 0:
            at[path[-1]] = draw.choice(WRONG)
        case 1:
            del at[path[-1]]
        case 2 if isinstance(at, dict):
            at[str(draw.choice(["extra", path[-1], ""]))] = draw.choice(WRONG)
        case _:
            at.append(draw.choice(WRONG)) if isinstance(at, list) else at.clear()
    return copy


def mutated(content: bytes, suffix: str, draw: random.Random) -> bytes:
    """Other bytes in the place of a file's."""
    lines = content.split(b"\n")
    match draw.randrange(8):
        case 0:
            return content[: draw.randrange(len(content) + 1)]
        case 1:
            at = draw.randrange(len(content) + 1)
            return (
                content[:at] + draw.choice([b"\xe9", b"\x00", b"\xff\xfe", b"[" * 10_000, b"{", b"\n"]) + content[at:]
            )
        case 2:
            draw.shuffle(lines)
            return b"\n".join(lines)
        case 3:
            at = draw.randrange(len(lines))
            return b"\n".join([*lines[:at], lines[at], *lines[at:]])
        case 4:
            return draw.choice(
                [b"", b"[" * 10_000, b'{"a":' * 10_000, b"null", b"[]", b"{}", b"3", b"\xef\xbb\xbf" + content]
            )
        case _ if suffix == ".json":
            value = json.loads(content)
            return json.dumps(changed(value, draw.choice(places_in(value)), draw)).encode()
        case _ if suffix == ".jsonl":
            at = draw.randrange(len(lines) - 1)
            value = json.loads(lines[at])
            lines[at] = json.dumps(changed(value, draw.choice(places_in(value)), draw)).encode()
            return b"\n".join(lines)
        case _:
            at = draw.randrange(len(lines))
            key = lines[at].partition(b":")[0]
            lines[at] = key + b": " + json.dumps(draw.choice(WRONG)).encode()
            return b"\n".join(lines)


def attempt(file: str, read: Callable[[], object], content: bytes) -> str:
    """What a reader says of a file: empty, or one line."""
    try:
        read()
    except GptlabError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"{file}: {type(error).__name__}: {error}\n{content[:600]!r}") from error
    return ""


@pytest.mark.slow
def test_any_edit_is_read_or_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    draw = random.Random(0)
    known = [(file, read) for file, read in readers(place) if (place / file).exists()]
    refused = 0
    for file, read in known:
        assert attempt(file, read, b"") == ""  # as they are, all are read
    for number in range(MUTATIONS):
        file, read = known[number % len(known)]
        path = place / file
        before = path.read_bytes()
        after = mutated(before, path.suffix, draw)
        path.write_bytes(after)
        said = attempt(file, read, after)
        path.write_bytes(before)
        assert len(said.splitlines()) <= 1, (file, said, after[:300])
        refused += said != ""
    assert MUTATIONS / 4 < refused < MUTATIONS  # some edits change nothing, or something that nobody can know


def test_a_folder_in_the_place_of_a_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for file, read in readers(place):
        path = place / file
        if not path.is_file():
            continue
        path.rename(place / "aside")
        path.mkdir()
        said = attempt(file, read, b"a folder")
        shutil.rmtree(path)
        (place / "aside").rename(path)
        assert len(said.splitlines()) <= 1


def test_metrics_that_were_edited_are_believed_by_neither_reader(place: Path, tmp_path: Path) -> None:
    rows = [{"step": s, "tokens": 256 * s, "train/loss": 3.0 - s / 10} for s in (1, 2, 3)]
    edits: list[tuple[str, list[dict[str, Any]]]] = [
        ("comes after step", rows[::-1]),
        ("is there twice", [rows[0], rows[1], rows[1], rows[2]]),
        ("no count", [{**rows[0], "step": -1}, *rows[1:]]),
        ("no number", [{**rows[0], "train/loss": "low"}, *rows[1:]]),
        ("is beyond", [{**rows[0], "train/loss": 1e300}, *rows[1:]]),
        ("no count", [{**rows[0], "step": None}, *rows[1:]]),
    ]
    path = tmp_path / "metrics.jsonl"
    for cause, edited in edits:
        path.write_text("".join(json.dumps(row) + "\n" for row in edited))
        with pytest.raises(GptlabError, match=rf"metrics\.jsonl:\d: .*{cause}"):
            read_metrics(path)
        with pytest.raises(GptlabError, match=rf"metrics\.jsonl:\d: .*{cause}"):
            read_columns(path, ["tokens", "train/loss"])
