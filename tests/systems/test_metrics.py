"""metrics.jsonl and its views."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptlab.config import config_from
from gptlab.config.schema import Log
from gptlab.errors import GptlabError
from gptlab.record.metrics import read_metrics, write_csv
from gptlab.systems import plot
from gptlab.systems.metrics import MetricsLog
from gptlab.systems.plot import plot_loss
from gptlab.systems.sinks import open_sinks, require_sinks

ROWS = [
    {"step": 1, "tokens": 10, "train/loss": 5.5},
    {"step": 2, "tokens": 20, "train/loss": 5.0},
    {"step": 2, "tokens": 20, "val/loss": 5.25},
]


def open_log(folder: Path, resume_step: int | None = None, **options: Any) -> MetricsLog:
    config = config_from({"log": options})
    return MetricsLog(folder, resume_step=resume_step, sinks=open_sinks(config, folder, resume_step))


def test_rows_come_back_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.write(ROWS)
    log.write([{"step": 3, "train/loss": math.nan, "gradient_norm": math.inf, "skipped": True}])
    assert read_metrics(log.path)[:3] == ROWS  # readable while the run is on
    log.close()
    log.close()
    assert read_metrics(log.path)[3] == {"step": 3, "train/loss": None, "gradient_norm": None, "skipped": True}
    for line in log.path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("torn", ['{"step": 4, "train', "{", "4", '{"tokens": 3}', "[1]"])
def test_a_torn_last_line_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], torn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("gptlab.record.metrics.say", said.append)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + torn)
    assert read_metrics(path) == ROWS
    assert len(said) == 1
    assert f"{path}:4: the last line is torn" in said[0]


@pytest.mark.parametrize("damage", ['{"step": 4, "train', '{"tokens": 3}', "\x00\x00"])
def test_a_damaged_line_before_the_last_is_an_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{damage}\n{{"step": 3}}\n')
    with pytest.raises(GptlabError, match=r"metrics\.jsonl:2: not a row of metrics; delete the line, or restore"):
        read_metrics(path)


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_resumed_log_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.write([*ROWS, {"step": 3, "train/loss": 4.0}])
    log.close()
    with open(log.path, "a") as file:
        file.write('{"step": 4, "tra')
    resumed = open_log(tmp_path, resume_step=2)
    assert read_metrics(resumed.path) == ROWS
    resumed.write([{"step": 3, "train/loss": 4.5}])
    resumed.close()
    assert [row["train/loss"] for row in read_metrics(log.path) if row["step"] == 3] == [4.5]
    fresh = open_log(tmp_path)
    fresh.close()
    assert read_metrics(log.path) == []


def test_csv_has_a_row_a_step(tmp_path: Path) -> None:
    write_csv([*ROWS, {"step": 3, "train/loss": None, "extra, quoted": 'a"b'}], tmp_path / "metrics.csv")
    with open(tmp_path / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["step"] for row in table] == ["1", "2", "3"]
    assert table[1] | {"extra, quoted": ""} == {
        "step": "2",
        "tokens": "20",
        "train/loss": "5.0",
        "val/loss": "5.25",
        "extra, quoted": "",
    }
    assert table[0]["val/loss"] == table[2]["train/loss"] == ""
    assert table[2]["extra, quoted"] == 'a"b'
    write_csv([], tmp_path / "empty.csv")
    assert (tmp_path / "empty.csv").read_text().strip() == ""


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = open_log(tmp_path, tensorboard=True)
    log.write([*ROWS, {"step": 3, "train/loss": math.nan}])
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"tokens", "train/loss", "val/loss"}
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 5.5), (2, 5.0)]


@pytest.mark.parametrize(
    ("module", "options", "complaint"),
    [
        ("wandb", {"tensorboard": False, "wandb": "offline"}, "log.wandb is offline but wandb is missing; pip install"),
        ("tensorboard", {"tensorboard": True, "wandb": "off"}, "TensorBoard is missing; pip install"),
    ],
)
def test_a_sink_that_is_not_installed_is_one_line(
    monkeypatch: pytest.MonkeyPatch, module: str, options: dict[str, Any], complaint: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(GptlabError) as caught:
        require_sinks(Log(**options))
    assert complaint in str(caught.value)
    require_sinks(Log())


# ---------------------------------------------------------------- plot


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": s, "tokens": 10 * s, "train/loss": 5 - 0.01 * s} for s in range(1, 120)],
        [{"step": s, "tokens": 10 * s, "train/loss": 5.0} for s in (1,)],
        [{"step": 5, "tokens": 50, "val/loss": 3.0}],
        [*ROWS, {"step": 3, "tokens": 30, "train/loss": None}, {"step": 3, "tokens": 30, "val/loss": None}],
        [{"step": 1, "tokens": 10, "train/loss": None}],
        [{"step": 1, "tokens": 10}],
    ],
    ids=["training", "one step", "validation", "nulls", "nothing but null", "no losses"],
)
def test_the_plot_is_a_picture(tmp_path: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib
    import matplotlib.pyplot

    monkeypatch.setitem(matplotlib.rcParams, "backend", "svg")
    plot_loss(rows, tmp_path / "loss.png", "a run")
    content = (tmp_path / "loss.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 5000
    width, height = (int.from_bytes(content[at : at + 4]) for at in (16, 20))
    assert (width, height) == (1200, 720)
    assert matplotlib.pyplot.get_fignums() == []  # nothing is left open
    assert matplotlib.rcParams["backend"] == "svg"  # a notebook's choice stays


@pytest.mark.parametrize(("steps", "label"), [(40, "training"), (120, "training (mean of 2 steps)")])
def test_the_legend_says_what_was_averaged(steps: int, label: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    curve = np.column_stack([np.arange(steps), np.linspace(5.0, 3.0, steps)])
    plot._draw(curve, np.empty((0, 2)), "a run", figure)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [label]
