"""Does the best learning rate stay where it is when the model gets wider? Standard parametrization against muP.

    python experiments/mup-width/sweep.py [--widths 128,256,512,1024] [--rates 2^-11..2^-5]

Trains mup.yaml at each width and rate in both parametrizations, one run each and each only once (a finished run is
found by its hash), then writes results.csv and sweep.png beside this file and prints the best rate of every width.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from gptlab.config import load_config, run_name
from gptlab.data import open_splits
from gptlab.errors import TrainingError
from gptlab.run import load
from gptlab.training.loop import train

HERE = Path(__file__).parent
BASE = 128
Row = dict[str, str | int | float]


def final_loss(parametrization: str, width: int, exponent: int) -> float:
    """Validation loss of the run, which is trained if there is none yet; infinite where training broke off."""
    overrides = [
        f"name=mup-width-{parametrization}-{width}-lr2e{exponent}",
        f"model.dim={width}",
        f"model.heads={2 * width // BASE}",
        f"optimizer.lr={2.0**exponent}",
    ]
    if parametrization == "standard":
        overrides.append("model.mup=null")
    config = load_config(HERE / "mup.yaml", overrides)
    _, train_sets, _ = open_splits(config.data)
    folder = Path("runs") / run_name(config, {name: data.fingerprint for name, data in train_sets.items()})
    try:
        run = load(folder) if (folder / "model.safetensors").is_file() else train(config, resume=True)
    except TrainingError:  # a rate far too high
        return float("inf")
    return float([row["val/loss"] for row in run.metrics if "val/loss" in row][-1])


def best(rows: list[Row], parametrization: str, width: int) -> int:
    """The exponent of the rate with the lowest loss."""
    mine = [row for row in rows if row["parametrization"] == parametrization and row["width"] == width]
    return int(min(mine, key=lambda row: row["loss"])["log2_rate"])


def plot(rows: list[Row], path: Path) -> None:
    """Loss against rate, a line a width, both parametrizations side by side; the best rate of each is marked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    widths = sorted({int(row["width"]) for row in rows})
    colors = plt.get_cmap("viridis")(np.linspace(0.1, 0.85, len(widths)))
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 4.2), dpi=110, sharey=True)
    finite = [row["loss"] for row in rows if row["loss"] < 1e9]
    for axes, name, title in zip(panels, ("standard", "mup"), ("standard parametrization", "muP"), strict=True):
        for width, color in zip(widths, colors, strict=True):
            mine = sorted(
                (r["log2_rate"], r["loss"]) for r in rows if r["parametrization"] == name and r["width"] == width
            )
            shown = np.array([(rate, loss) for rate, loss in mine if loss < 1e9])
            axes.plot(*shown.T, color=color, marker="o", ms=3, lw=1.5, label=f"width {width}")
            lowest = shown[shown[:, 1].argmin()]
            axes.plot(*lowest, color=color, marker="*", ms=13)
        axes.set(xlabel="log₂ of the learning rate", title=title)
        axes.set_ylim(min(finite) - 0.05, min(min(finite) + 1.2, max(finite) + 0.05))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("validation loss (nats a byte)")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Parse, train what is missing, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="128,256,512,1024")
    parser.add_argument("--rates", default="2^-11..2^-5")
    options = parser.parse_args()
    widths = [int(width) for width in options.widths.split(",")]
    low, high = (int(part.removeprefix("2^")) for part in options.rates.split(".."))
    rows: list[Row] = []
    for width in widths:
        for name in ("standard", "mup"):
            for exponent in range(low, high + 1):
                loss = final_loss(name, width, exponent)
                rows.append({"parametrization": name, "width": width, "log2_rate": exponent, "loss": loss})
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "loss": f"{row['loss']:.4f}"} for row in rows)
    plot(rows, HERE / "sweep.png")
    print("| width | best rate, standard | best rate, muP |\n|---|---|---|")
    for width in widths:
        print(f"| {width} | 2^{best(rows, 'standard', width)} | 2^{best(rows, 'mup', width)} |")


if __name__ == "__main__":
    main()
