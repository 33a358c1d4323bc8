"""Budgets: the compute-optimal model for an amount of money."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gptlab.errors import GptlabError, option
from gptlab.planning.plan import Plan


@dataclass(frozen=True)
class Budget:
    """What an amount of money buys: hours of training, FLOPs, and the compute-optimal parameters and tokens."""

    dollars: float
    hours: float  # after the overhead
    flops: float
    parameters: float
    tokens: float
    tokens_per_parameter: float


def compute_optimal_budget(plan: Plan, dollars: float, *, tokens_per_parameter: float = 20.0) -> Budget:
    """Chinchilla's answer for `dollars` at the rate and speed of `plan` (Hoffmann et al. 2022, arXiv:2203.15556).

    Of C = 6·N·D (their section 3) with D = `tokens_per_parameter` · N (20 is near their Table 3): N = √(C / (6·20)).
    Raises GptlabError where there is no price or speed, or nothing is left after the overhead.
    """
    if plan.dollars_per_hour is None or plan.flops_per_second is None:
        raise GptlabError(
            f"{option('budget')} needs a price and a speed; name a card with {option('gpu')}, or give "
            f"{option('rate', 'DOLLARS_PER_HOUR')}"
        )
    overhead = plan.overhead_minutes / 60 * plan.dollars_per_hour
    if plan.dollars_per_hour == 0:
        raise GptlabError(
            f"{option('budget')}: the rate is 0 dollars an hour, which buys without end; give {option('rate')}"
        )
    if dollars <= overhead:
        raise GptlabError(
            f"{option('budget', dollars)}: {plan.overhead_minutes:g} minutes of overhead alone cost "
            f"${overhead:.2f} at "
            f"${plan.dollars_per_hour:g} an hour; give more than that, or lower {option('overhead')}"
        )
    hours = (dollars - overhead) / plan.dollars_per_hour
    flops = hours * 3600 * plan.flops_per_second
    parameters = math.sqrt(flops / (6 * tokens_per_parameter))
    return Budget(dollars, hours, flops, parameters, tokens_per_parameter * parameters, tokens_per_parameter)


def nearest_size(parameters: float, sizes: dict[str, int]) -> str | None:
    """The name whose size is nearest to `parameters`, as a ratio; None where there are none."""
    return min(sizes, key=lambda name: abs(math.log(sizes[name] / parameters)), default=None)
