"""Write down what the runs of two-stages.yaml came to: results.json, and the curves as two-stages.png.

    python experiments/two-stages/results.py [RUNS]

Reads the run folders in RUNS (runs/ by default) that `gptlab train experiments/two-stages/two-stages.yaml` made; trains
nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gptlab.config.yamlfile import read_yaml
from gptlab.record.metrics import read_metrics

HERE = Path(__file__).parent


def validation(run: Path) -> list[tuple[float, float]]:
    """(million tokens, validation loss) of each validation of a run."""
    rows = read_metrics(run / "metrics.jsonl")
    return [(row["tokens"] / 1e6, row["val/loss"]) for row in rows if "val/loss" in row]


def collect(runs: Path) -> dict[str, Any]:
    """Losses of both stages, from the runs' own records."""
    (start,) = runs.glob("two-stages-pretrain-*")
    (soup,) = runs.glob("two-stages-anneal-soup-*")
    record, _ = read_yaml(soup / "soup.yaml")
    branches = [
        {"run": Path(one["run"]).name, "loss": one["loss"], "standard_error": one["standard_error"]}
        for one in record["runs"]
    ]
    names = {one["run"] for one in branches} | {soup.name}
    others = [run for run in runs.glob("two-stages-anneal-*") if run.name not in names]
    return {
        "pretrain": {"run": start.name, "loss": validation(start)[-1][1]},
        "anneal": branches,
        "mean_of_runs": record["mean_loss"],
        "soup": {"run": soup.name, "loss": record["loss"], "standard_error": record["standard_error"]},
        "soup_minus_mean": record["loss"] - record["mean_loss"],
        "soup_minus_best": record["loss"] - min(one["loss"] for one in branches),
        "validation_tokens": record["tokens"],
        "one_longer_run": [{"run": run.name, "loss": validation(run)[-1][1]} for run in others],
    }


def plot(results: dict[str, Any], runs: Path, path: Path) -> None:
    """Validation loss over the tokens of a branch, both stages in a line; the soup is a dot at the end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    first = validation(runs / results["pretrain"]["run"])
    axes.plot(*zip(*first, strict=True), color="0.35", marker=".", label="pretrain")
    end = first[-1]
    for number, branch in enumerate(results["anneal"]):
        curve = [end, *((end[0] + tokens, loss) for tokens, loss in validation(runs / branch["run"]))]
        axes.plot(*zip(*curve, strict=True), color=f"C{number}", marker=".", linewidth=1, label=f"anneal {number + 1}")
    last = curve[-1][0]
    axes.plot([last], [results["soup"]["loss"]], "k*", markersize=9, label="soup")
    axes.set(xlabel="million tokens of one branch", ylabel="validation loss, nats a token")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Collect, write, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="?", type=Path, default=Path("runs"))
    runs = parser.parse_args().runs
    results = collect(runs)
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot(results, runs, HERE / "two-stages.png")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
