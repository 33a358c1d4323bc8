"""Numbers that the tests of statistics share."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from gptlab.lab.stats.decision import Rule

PAGE = Path(__file__).resolve().parents[2] / "docs" / "statistics.md"
RULE = Rule(alpha=0.05, smallest_effect=0.01, g=2.0)


def sample(n: int, mean: float, sd: float, seed: int = 0) -> np.ndarray:
    """n numbers of exactly this mean and standard deviation."""
    z = np.random.default_rng(seed).standard_normal(n)
    return np.asarray(mean + sd * (z - z.mean()) / z.std(ddof=1))


def table(heading: str) -> list[list[str]]:
    """The rows of the first table after a heading of the page, without its head."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    lines = re.findall(r"(?:^\|.*\n)+", text, re.M)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def noisy(loss: np.ndarray, sd: float, seed: int) -> np.ndarray:
    """Losses with log-normal noise."""
    return np.asarray(loss * np.exp(np.random.default_rng(seed).normal(0, sd, loss.shape)))
