"""The ladder: rungs that can be trained, and what made losses of a known law show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gptlab.config import config_from
from gptlab.errors import GptlabError
from gptlab.lab.stats.chinchilla import ParametricLaw
from gptlab.lab.studies.ladder import Point, Size, at_size, fit_ladder, lines, parse_sizes, parse_tokens, write_ladder

LAW = ParametricLaw(E=2.0, A=60.0, B=300.0, alpha=0.35, beta=0.4)
SIZES = [Size(64, 2, 100_000), Size(96, 3, 330_000), Size(128, 4, 790_000), Size(192, 6, 2_600_000)]
TOKENS = [400_000, 800_000, 1_600_000, 3_200_000]


def points(noise: float = 1e-4) -> list[Point]:
    rng = np.random.default_rng(0)
    return [
        Point("base", size, tokens, float(LAW.loss(size.parameters, tokens) * np.exp(rng.normal(0, noise))))
        for size in SIZES
        for tokens in TOKENS
    ]


def test_sizes_and_tokens_are_read() -> None:
    assert [str(size) for size in parse_sizes("64x2, 96x3,128x4")] == ["64x2", "96x3", "128x4"]
    assert parse_tokens("800k,200k,400k") == [200_000, 400_000, 800_000]
    for text, message in (("64x2,96", "DIMxLAYERS"), ("64x2,64x2,96x3", "twice"), ("64x2,96x3", "three or more")):
        with pytest.raises(GptlabError, match=message):
            parse_sizes(text)
    with pytest.raises(GptlabError, match="not numbers"):
        parse_tokens("many,200k,400k")


def test_heads_stay_as_wide_as_they_are() -> None:
    config = config_from({"data": {"path": "data"}, "model": {"dim": 64, "heads": 4, "layers": 2}})
    model = at_size(config, Size(96, 3), 200_000).plain()["model"]
    assert (model["dim"], model["layers"], model["heads"]) == (96, 3, 6)
    with pytest.raises(GptlabError, match="heads 16 wide"):
        at_size(config, Size(100, 3), 200_000)


def test_the_next_rung_and_the_one_held_out_are_predicted(tmp_path: Path) -> None:
    found = fit_ladder("base", points())
    n, d = found.target
    assert n == pytest.approx(2_600_000**2 / 790_000)
    assert d == 6_400_000
    assert found.predicted.value == pytest.approx(float(LAW.loss(n, d)), rel=0.005)
    assert found.predicted.low <= float(LAW.loss(n, d)) <= found.predicted.high
    assert found.held_out is not None
    assert found.held_out.predicted.value == pytest.approx(found.held_out.measured, rel=0.005)
    written = write_ladder(found, tmp_path)
    assert [path.name for path in written] == ["ladder.json", "ladder.md", "ladder.png"]
    assert "held out: 192x6 with 3.2M tokens" in written[1].read_text()


def test_the_order_of_arms_is_compared_with_that_at_the_largest_size() -> None:
    arms = [
        Point(
            arm, size, TOKENS[-1], float(LAW.loss(size.parameters, TOKENS[-1])) + shift * (-1 if size.dim < 96 else 1)
        )
        for size in SIZES
        for arm, shift in (("a", 0.1), ("b", 0.2), ("c", 0.3))
    ]
    found = fit_ladder("base", [*points(), *arms], hold_out=False)
    assert found.held_out is None
    assert found.rank_correlations["128x4"].spearman == pytest.approx(1)
    assert found.rank_correlations["64x2"].spearman < 0.5
    assert any("order of 4 arms at 64x2" in line for line in lines(found))
