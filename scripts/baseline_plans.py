"""The plans of GPT-Lab's baselines on several machines, for docs/planning.md.

    python scripts/baseline_plans.py [--write]

Prints the table; with --write it replaces the one in the page. No GPU and no data is needed: everything comes from
the gptlab-* presets and the shipped table of GPUs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from gptlab.config import load_config
from gptlab.hardware.gpus import read_gpus
from gptlab.planning.footprint import footprint
from gptlab.planning.formatting import format_dollars, format_seconds
from gptlab.planning.plan import USABLE_MEMORY, largest_fit, plan_run

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "planning.md"
MARKS = re.compile(r"(<!-- baselines -->\n).*?<!-- end -->", re.S)
CONFIGS = ("gptlab-xs", "gptlab-s", "gptlab-m")
MACHINES = (
    ("RTX 3060", 1),
    ("RTX 3090", 1),
    ("RTX 4090", 1),
    ("RTX 4090", 4),
    ("A100 80GB", 1),
    ("A100 80GB", 8),
    ("H100 SXM", 1),
    ("H100 SXM", 8),
)
VOCABULARY = 50257  # of their tokenizer, gpt2


def table(configs: Sequence[str] = CONFIGS) -> str:
    """A row a machine, two columns a config: time of the run, and dollars of the run and with the hour beside it."""
    cards = read_gpus()
    columns = []
    for name in configs:
        config = load_config(ROOT / "src/gptlab/config/presets" / f"{name}.yaml")
        one, two = (footprint(config, VOCABULARY, rows, accelerator=True, compiled=True) for rows in (1, 2))
        cells = [name.removeprefix("gptlab-").upper()]
        for card, count in MACHINES:
            limit = int(cards[card].memory * USABLE_MEMORY)
            found = largest_fit(one, two, config.sequences_per_step // count, limit)
            plan = plan_run(
                config,
                found,
                gpu=cards[card],
                devices=count,
                memory_limit=limit,
                validation_tokens=config.eval.tokens,
            )
            assert plan.seconds is not None
            assert plan.dollars is not None
            assert plan.dollars_with_overhead is not None
            dollars = f"{format_dollars(plan.dollars)}, {format_dollars(plan.dollars_with_overhead)}"
            fits = found.total <= limit
            cells.append(f"{format_seconds(plan.seconds)}, {dollars}" if fits else "does not fit")
        columns.append(cells)
    machines = [
        "machine",
        *(f"{count} × {card}, ${count * cards[card].dollars_per_hour:.2f}/h" for card, count in MACHINES),
    ]
    lines = [f"| {' | '.join(row)} |" for row in zip(machines, *columns, strict=True)]
    return "\n".join([lines[0], "|---" * (1 + len(columns)) + "|", *lines[1:]])


def main() -> None:
    """Print the table, or write it into the page."""
    found = table()
    if "--write" not in sys.argv[1:]:
        print(found)
        return
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(MARKS.sub(lambda match: f"{match[1]}{found}\n<!-- end -->", text), encoding="utf-8")


if __name__ == "__main__":
    main()
