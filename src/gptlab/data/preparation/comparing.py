"""What is known of the documents of all units, compared: which are kept, and what each step did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptlab.data.preparation.screening import no_counts
from gptlab.data.preparation.steps import ComparingStep, Step
from gptlab.data.preparation.unit_files import DoneUnits


def compare(done: DoneUnits, steps: Sequence[Step]) -> tuple[list[NDArray[np.bool_]], list[dict[str, Any]]]:
    """Which documents of each unit are kept by the steps that compare, and what each step did, in order.

    Where two splits have text of their own, a document of both stays in validation, which is small and measured.
    """
    reports = [no_counts() for step in steps if not step.compares]
    sizes: list[NDArray[np.int64]] = []
    for number in range(len(done.job.units)):
        found = done.read(number, "known", "bytes")
        sizes.append(found["bytes"])
        for total, part in zip(reports, found["known"]["report"]["alone"], strict=True):
            for key in ("documents", "bytes", "removed", "removed_bytes", "changed"):
                total[key] += part[key]
            total["reasons"].update(part["reasons"])
    order = sorted(range(len(sizes)), key=lambda number: (-done.job.units[number].walk, number))
    lengths = np.concatenate([np.zeros(0, dtype=np.int64), *(sizes[number] for number in order)])
    kept = np.ones(len(lengths), dtype=np.bool_)
    for place, step in enumerate(step for step in steps if isinstance(step, ComparingStep)):
        parts = [done.read(number, f"marks_{place}")[f"marks_{place}"] for number in order]
        marks = np.concatenate([part for part in parts if len(part)]) if len(lengths) else None
        counts = no_counts() | {"documents": int(kept.sum()), "bytes": int(lengths[kept].sum())}
        if marks is not None and len(marks):
            places = np.flatnonzero(kept)
            gone = places[step.repeated(marks[places])]
            kept[gone] = False
            counts |= {"removed": len(gone), "removed_bytes": int(lengths[gone].sum())}
        reports.append(counts)
    ends = np.cumsum([len(sizes[number]) for number in order])
    by_unit = dict(zip(order, np.split(kept, ends[:-1]) if len(order) else [], strict=True))
    for report in reports:
        report["reasons"] = dict(sorted(report["reasons"].items()))
    return [by_unit[number] for number in range(len(sizes))], reports
