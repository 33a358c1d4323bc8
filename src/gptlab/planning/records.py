"""Plans and predictions on disk, and how good a prediction was once the run is finished."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.config.jsonfile import read_json
from gptlab.errors import GptlabError
from gptlab.files import write_atomic
from gptlab.planning.plan import Plan, Prediction
from gptlab.record.facts import read_facts
from gptlab.seal import sealed_json


@dataclass(frozen=True)
class PredictionRatios:
    """Predicted ÷ actual; 1 is right, 2 is twice too much. `seconds` is None for a run of several sessions."""

    run: str
    basis: str
    training_seconds: float
    seconds: float | None
    peak_memory: float


def keep_plan(runs: Path, digest: str, plan: Plan) -> None:
    """Keep the plan of the runs whose hash is `digest`, beside them: until they are trained, and for other seeds."""
    write_atomic(_plan_file(runs, digest), sealed_json(plan.plain(), indent=None))


def kept_plan(runs: Path, digest: str) -> Plan | None:
    """The plan that was kept for a hash; None where there is none that can be read."""
    try:
        return Plan.from_plain(read_json(_plan_file(runs, digest), dict[str, Any], mend="delete it"))
    except (OSError, ValueError, GptlabError):
        return None


def _plan_file(runs: Path, digest: str) -> Path:
    return runs / ".plans" / f"{digest}.json"


def write_prediction(folder: Path, prediction: Prediction) -> None:
    """Write RUN/plan.json."""
    write_atomic(folder / "plan.json", sealed_json(dataclasses.asdict(prediction)))


def read_prediction(folder: Path) -> Prediction:
    """Read RUN/plan.json. Raises GptlabError where it is missing or damaged."""
    path = folder / "plan.json"
    try:
        return read_json(path, Prediction, mend="delete it, nothing else depends on it")
    except FileNotFoundError:
        raise GptlabError(f"{folder} has no plan.json: nothing was predicted before it was trained") from None


def compare_prediction(folder: Path) -> PredictionRatios:
    """Compare the prediction for a finished run with its facts. Raises GptlabError where it lacks either."""
    prediction, facts = read_prediction(folder), read_facts(folder)
    return PredictionRatios(
        run=folder.name,
        basis=prediction.basis,
        training_seconds=prediction.training_seconds / max(facts.seconds, 1e-9),
        seconds=prediction.seconds / max(facts.wall_seconds, 1e-9) if facts.sessions == 1 else None,
        peak_memory=prediction.peak_memory / max(facts.peak_memory_bytes, 1),
    )


def compare_kept_plan(folder: Path, digest: str) -> PredictionRatios | None:
    """Compare the kept plan of a run with what it took, and leave the prediction in the run's folder.

    `digest`: the run's hash. None where nothing was predicted, or the run is not finished.
    """
    if not (folder / "facts.json").is_file():
        return None
    plan = kept_plan(folder.parent, digest)
    if not (folder / "plan.json").is_file():
        if plan is None or (prediction := plan.prediction()) is None:
            return None
        write_prediction(folder, prediction)
    return compare_prediction(folder)


def past_predictions(runs: Path) -> list[PredictionRatios]:
    """The ratios of every finished run in `runs` that has a prediction."""
    folders = sorted(path.parent for path in runs.glob("*/plan.json"))
    return [compare_prediction(folder) for folder in folders if (folder / "facts.json").is_file()]


def median_ratios(found: Sequence[PredictionRatios]) -> tuple[float, float]:
    """Median of predicted ÷ actual: of the time (of the whole process where it is known) and of the peak memory."""
    times = [c.training_seconds if c.seconds is None else c.seconds for c in found]
    return statistics.median(times), statistics.median(c.peak_memory for c in found)
