"""Which tests `make test-fast` leaves out: written anew from the times of a whole run, so that the rest fits.

    python -m pytest -n 2 --dist loadfile --junitxml=times.xml && python scripts/slow_tests.py times.xml

Writes tests/slow.txt, a test function a line: those that take most (over all their parameters, fixtures included),
until what is left takes no longer than BUDGET. tests/conftest.py marks them `slow`.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

BUDGET = 30.0  # seconds of one process; two processes on cores of half the speed take about as long, start-up apart
TESTS = Path(__file__).resolve().parent.parent / "tests"


def main() -> None:
    seconds: dict[str, float] = defaultdict(float)
    for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
        file = case.attrib["classname"].removeprefix("tests.").replace(".", "/") + ".py"
        function = re.sub(r"\[.*", "", case.attrib["name"])
        seconds[f"{file}::{function}"] += float(case.attrib["time"])
    left, slow = sum(seconds.values()), []
    for name, took in sorted(seconds.items(), key=lambda item: -item[1]):
        if left <= BUDGET:
            break
        slow.append(name)
        left -= took
    (TESTS / "slow.txt").write_text("".join(f"{name}\n" for name in sorted(slow)))
    print(f"{len(slow)} of {len(seconds)} test functions are slow; the others take {left:.0f} s")


if __name__ == "__main__":
    main()
