"""Numbers for people."""

from __future__ import annotations

import pytest

from gptlab.planning.formatting import format_seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.034, "0.034 s"), (45, "45 s"), (150, "2.5 min"), (4000, "67 min"), (7200, "2 h"), (3e5, "3.47 days")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
