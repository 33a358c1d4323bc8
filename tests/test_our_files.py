"""Every file of ours that a person can edit, edited at random: no traceback, and an error, a word, or the same numbers.

2,000 mutations by hypothesis (types, other numbers, missing and extra keys, depth, encodings, truncation, doubled and
reordered rows), all in this process. A reader refuses with a GptlabError, or says that something was edited, or shows
what it showed before: nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import TINY, make_data
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import gptlab
from gptlab.config import RunConfig, load_config
from gptlab.data.dataset import TokenDataset, info
from gptlab.errors import GptlabError
from gptlab.lab.experiment.spec import load_experiment
from gptlab.lab.report.compare import read_runs
from gptlab.lab.report.registry import list_experiments, list_runs
from gptlab.lab.runs.store import Store
from gptlab.lab.studies.noise import NoiseEstimate, VarianceComponent, read_noise, write_noise
from gptlab.planning.plan import Footprint, Prediction, plan_run
from gptlab.planning.records import keep_plan, kept_plan, read_prediction, write_prediction
from gptlab.record.evaluation import Evaluation, read_evaluation
from gptlab.record.facts import read_facts
from gptlab.record.metrics import read_columns, read_metrics
from gptlab.record.runfolder import (
    Failure,
    read_config,
    read_failure,
    read_sessions,
    say_changed_weights,
    state,
    write_failure,
)
from gptlab.seal import sealed_json
from gptlab.systems.checkpoint import read_state, verify
from gptlab.tokenizer import Tokenizer, load_tokenizer

MUTATIONS = 2_000
WRONG: list[Any] = [None, True, -1, 10**30, 1e308, "text", "", [], {}, [[]], {"a": 1}, 0.5, "\u0000", "é"]
OWN = {"config.yaml", "experiments/e/experiment.yaml"}
"""What a person writes: an edit of it is what is asked for, and no number was measured by what it said before."""
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
    report = {
        "schema": 1,
        "hypothesis": "h",
        "arms": [],
        "runs": 3,
        "seconds": 1.5,
        "dollars": None,
        "last_run": "2026",
    }
    (folder / "experiments/e/report.json").write_text(sealed_json(report))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = gptlab.train(load_config("config.yaml"), folder=folder / "runs/run")
    Evaluation("topk", {"top_1": 0.1, "top_5": 0.2, "top_10": 0.3}, {}, {"step": 4}).write(
        run.folder / "evals/topk.json"
    )
    Evaluation("hellaswag", {"accuracy": 0.25}, {}, {"limit": None, "step": 4}).write(
        run.folder / "evals/hellaswag.json"
    )
    write_failure(run.folder, Failure("ConfigError", "no"))
    write_prediction(run.folder, Prediction("cpu", "probe", 1.0, 2.0, 10, None))
    part = VarianceComponent(0.1, 0.05, 0.2, 3)
    write_noise(Store(folder / "runs"), NoiseEstimate("n", "0123abcd", "loss", {"a": [1.0, 2.0]}, {"total": part}))
    footprint = Footprint(257, 9_000, 800, 5e4, 4, False, 36_000, 36_000, 72_000, 10_000, 5_000)
    config = load_config(folder / "config.yaml")
    keep_plan(folder / "runs", "0123abcd", plan_run(config, footprint))
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
        ("runs/run/metrics.jsonl", lambda: read_runs([run])),
        ("runs/run/evals/topk.json", lambda: read_evaluation(run, "topk")),
        ("runs/run/evals/hellaswag.json", lambda: read_evaluation(run, "hellaswag")),
        ("runs/run/model.sha256", lambda: say_changed_weights(run)),
        ("runs/run/config.yaml", lambda: (read_config(run), read_runs([run]))),
        (f"{checkpoint}/state.json", lambda: read_state(place / checkpoint)),
        (f"{checkpoint}/manifest.json", lambda: refused(verify(place / checkpoint))),
        ("data/dataset.json", lambda: (info(place / "data"), TokenDataset.open(place / "data", "train"))),
        ("data/tokenizer/meta.json", lambda: load_tokenizer(place / "data/tokenizer")),
        ("data/tokenizer/tokenizer.json", lambda: load_tokenizer(place / "data/tokenizer")),
        ("config.yaml", lambda: load_config(place / "config.yaml")),
        ("experiments/e/experiment.yaml", lambda: load_experiment(place / "experiments/e")),
        ("experiments/e/report.json", lambda: listed(place)),
        ("runs/.noise/0123abcd.json", lambda: read_noise(store, "0123abcd")),
        ("runs/.plans/0123abcd.json", lambda: kept_plan(place / "runs", "0123abcd") or refused("plan")),
    ]


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(one for key, item in items for one in places_in(item, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """`value` with something else, nothing, another number or something more at one of its places."""
    path = draw(st.sampled_from(places_in(value)))
    if not path:
        return draw(st.sampled_from(WRONG))
    copy = json.loads(json.dumps(value))
    at = copy
    for key in path[:-1]:
        at = at[key]
    kind = draw(st.sampled_from(["wrong", "other", "gone", "more"]))
    if kind == "other" and isinstance(at[path[-1]], int | float):
        at[path[-1]] = draw(st.sampled_from([at[path[-1]] * 2, at[path[-1]] + 1, at[path[-1]] * 0.999]))
    elif kind in ("wrong", "other"):
        at[path[-1]] = draw(st.sampled_from(WRONG))
    elif kind == "gone":
        del at[path[-1]]
    elif isinstance(at, dict):
        at[draw(st.sampled_from(["extra", path[-1], ""]))] = draw(st.sampled_from(WRONG))
    else:
        at.append(draw(st.sampled_from(WRONG)))
    return copy


@st.composite
def mutated(draw: st.DrawFn, content: bytes, suffix: str) -> bytes:
    """Other bytes in the place of a file's."""
    lines = content.split(b"\n")
    at = draw(st.integers(0, max(0, len(lines) - 2)))
    kind = draw(
        st.sampled_from(["cut", "bytes", "order", "twice", "lost", "another", "value", "value", "value", "value"])
    )
    if kind == "cut":
        return content[: draw(st.integers(0, len(content)))]
    if kind == "bytes":
        place = draw(st.integers(0, len(content)))
        odd = draw(st.sampled_from([b"\xe9", b"\x00", b"\xff\xfe", b"[" * 10_000, b"{", b"\n", b"7"]))
        return content[:place] + odd + content[place:]
    if kind == "order":
        return b"\n".join(draw(st.permutations(lines)) if len(lines) < 40 else lines[::-1])
    if kind == "twice":
        return b"\n".join([*lines[:at], lines[at], *lines[at:]])
    if kind == "lost":
        return b"\n".join([*lines[:at], *lines[at + 1 :]])
    if kind == "another":
        others = [b"", b"[" * 10_000, b'{"a":' * 10_000, b"null", b"[]", b"{}", b"3", b"\xef\xbb\xbf" + content]
        return draw(st.sampled_from(others))
    if suffix == ".jsonl":
        lines[at] = json.dumps(draw(changed(json.loads(lines[at])))).encode()
    elif suffix in (".json", ".sha256"):
        return json.dumps(draw(changed(json.loads(content)))).encode()
    else:
        key, _, value = lines[at].partition(b":")
        other = [json.dumps(draw(st.sampled_from(WRONG))).encode(), value.strip() + b"7", b"1", b"0.25"]
        lines[at] = key + b": " + draw(st.sampled_from(other))
    return b"\n".join(lines)


def refused(problem: str | None) -> None:
    """What readers that return what is wrong would raise."""
    if problem:
        raise GptlabError(problem)


def listed(place: Path) -> object:
    """The experiments; raises for one that is listed with what is wrong with it."""
    entries = list_experiments(place / "experiments", Store(place / "runs"))
    return [refused(entry.error) or entry for entry in entries]


def shown(value: Any) -> Any:
    """What there is to see of what a reader returned."""
    match value:
        case np.ndarray():
            return value.tolist()
        case TokenDataset():
            return value.fingerprint, value.vocab_size, value.end_of_text, value.documents, value.tokens
        case Tokenizer():
            return value.hash, value.name, value.special_tokens, value.trained_on, value.pattern
        case RunConfig():
            return shown(value.plain())
        case {"model": _, "data": dict(data)}:  # a config: but for what may be changed where a run is used
            kept = {key: item for key, item in data.items() if key not in ("path", "sources", "tokenizer")}
            plain = {key: item for key, item in value.items() if key not in ("system", "log", "checkpoint")}
            return {**plain, "data": kept}
        case dict():
            return {key: shown(item) for key, item in value.items()}
        case list() | tuple():
            return [shown(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {field.name: shown(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def attempt(file: str, read: Callable[[], object], content: bytes) -> tuple[str, str]:
    """What a reader shows, and what it says of the file: empty, or a line."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            seen = repr(shown(read()))
    except GptlabError as error:
        return "", str(error)
    except Exception as error:
        raise AssertionError(f"{file}: {type(error).__name__}: {error}\n{content[:600]!r}") from error
    return seen, told.getvalue()


@pytest.mark.slow
def test_no_edit_changes_a_shown_number_without_a_word(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    known = [(file, read, *attempt(file, read, b"")) for file, read in readers(place)]
    assert all(seen and not said for _, _, seen, said in known)  # as they are, all are read
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=MUTATIONS,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def edit(data: st.DataObject) -> None:
        file, read, before, _ = data.draw(st.sampled_from(known))
        path = place / file
        content = path.read_bytes()
        after = data.draw(mutated(content, path.suffix))
        path.write_bytes(after)
        try:
            seen, said = attempt(file, read, after)
        finally:
            path.write_bytes(content)
        assert said or seen == before or file in OWN, f"{file}: silently {seen}, was {before}; {after[:2000]!r}"
        outcomes["said" if said else "the same" if seen == before else "asked for"] += 1

    edit()
    assert outcomes.total() >= MUTATIONS
    assert outcomes["said"] > outcomes.total() / 2, outcomes


def test_a_folder_in_the_place_of_a_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for file, read in readers(place):
        path = place / file
        if not path.is_file():
            continue
        path.rename(place / "aside")
        path.mkdir()
        attempt(file, read, b"a folder")
        shutil.rmtree(path)
        (place / "aside").rename(path)


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
