"""Budgets: what an amount of money trains, and what is refused."""

from __future__ import annotations

import pytest
from planning.samples import FOOTPRINT, PROBE, config

from gptlab.errors import GptlabError
from gptlab.planning.budget import compute_optimal_budget, nearest_size
from gptlab.planning.plan import Price, plan_run


def test_a_budget_is_spent_the_chinchilla_way() -> None:
    plan = plan_run(config(), FOOTPRINT, probe=PROBE, price=Price(2.0))
    found = compute_optimal_budget(plan, 5.0)
    assert found.hours == 1.5  # one of two and a half hours is overhead
    assert plan.flops_per_second is not None
    assert found.flops == pytest.approx(1.5 * 3600 * plan.flops_per_second)
    assert 6 * found.parameters * found.tokens == pytest.approx(found.flops)
    assert found.tokens == pytest.approx(20 * found.parameters)
    assert nearest_size(1e6, {"a": 1_000, "b": 900_000, "c": 10_000_000}) == "b"
    with pytest.raises(GptlabError, match=r"60 minutes of overhead alone cost \$2.00"):
        compute_optimal_budget(plan, 2.0)
    with pytest.raises(GptlabError, match="needs a price and a speed"):
        compute_optimal_budget(plan_run(config(), FOOTPRINT), 5.0)
    with pytest.raises(GptlabError, match="the rate is 0"):
        compute_optimal_budget(plan_run(config(), FOOTPRINT, probe=PROBE, price=Price(0.0)), 5.0)
