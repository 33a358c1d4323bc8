"""The search space of a sweep: ranges and choices by dotted key, and how a trial's values are set in a config."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gptlab.config import RunConfig
from gptlab.config.identity import UNHASHED
from gptlab.config.load import override
from gptlab.config.yamlfile import parse_yaml
from gptlab.errors import ConfigError, GptlabError, option

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = str | int | float | bool | None
_RANGE = re.compile(r"\s*([^:\s\[]+?)\.\.([^:\s]+?)\s*(?::\s*(log|step=(\S+)))?\s*")
_NO_RESULT = tuple(key for key in UNHASHED if key not in ("data.path", "data.sources", "data.tokenizer"))


@dataclass(frozen=True)
class Range:
    """An interval of numbers, of integers where both ends are; sampled uniformly, log-uniformly (`log`) or in steps."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int | None)


Space = dict[str, Range | list[Value]]


def parse_space(texts: Sequence[str], config: RunConfig) -> Space:
    """`optimizer.lr=1e-4..1e-2:log`, `model.dim=64..128:step=32` or `model.block.mlp=[GELU, SwiGLU]`, by dotted key.

    Raises GptlabError for what is none of these, an empty range or list, keys or values that `config` cannot take, and
    keys that change no result.
    """
    space: Space = {}
    for text in texts:
        key, equals, written = (part.strip() for part in text.partition("="))
        if not equals or not key or not written:
            raise GptlabError(f"{option('param', text)}: write KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=[A, B]")
        if any(f"{key}.".startswith(f"{same}.") for same in _NO_RESULT):
            raise GptlabError(
                f"{option('param', text)}: {key} changes no result, or is not a trial's to set; leave it out"
            )
        if key in space:
            raise GptlabError(f"{option('param', text)}: {key} is there twice; give it once")
        values = _range(text, match) if (match := _RANGE.fullmatch(written)) else _choices(text, written)
        for value in extremes(values):
            try:
                override(config, [_setting(key, value)], {})
            except ConfigError as error:
                message = str(error).removeprefix(f"{option('set', _setting(key, value))}: ")
                raise GptlabError(f"{option('param', text)}: {message}") from None
        space[key] = values
    if not space:
        raise GptlabError(
            f"nothing to search over; give {option('param')}, for example "
            f"{option('param', 'optimizer.lr=1e-4..1e-2:log')}"
        )
    return space


def extremes(values: Range | list[Value]) -> Sequence[Value]:
    """The ends of a range, or all choices."""
    return [values.low, values.high] if isinstance(values, Range) else values


def _range(text: str, match: re.Match[str]) -> Range:
    low, high, kind, step = match.groups()
    try:
        found = Range(_number(low), _number(high), kind == "log", None if step is None else _number(step))
    except ValueError:
        raise GptlabError(f"{option('param', text)}: the ends of a range are numbers, such as 1e-4..1e-2:log") from None
    if not found.low < found.high or (found.log and found.low <= 0) or (found.step is not None and found.step <= 0):
        raise GptlabError(f"{option('param', text)}: the range is empty; low must be below high (and above 0 for log)")
    if found.step is not None and found.step > found.high - found.low:
        raise GptlabError(
            f"{option('param', text)}: the step is wider than the range, so that only {low} would be tried"
        )
    return found


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)


def _choices(text: str, written: str) -> list[Value]:
    values, _ = parse_yaml(written, f"{option('param', text)}")
    if not isinstance(values, list) or not values:
        raise GptlabError(f"{option('param', text)}: give a range LOW..HIGH, or choices in brackets: [GELU, SwiGLU]")
    return [value if isinstance(value, Value) else json.dumps(value) for value in values]


def _setting(key: str, value: Value) -> str:
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def apply_parameters(config: RunConfig, parameters: Mapping[str, Any]) -> RunConfig:
    """`config` with a trial's values. Raises ConfigError where they do not go together."""
    return override(config, [_setting(key, value) for key, value in parameters.items()], {})


def require_equal_lengths(config: RunConfig, space: Space) -> None:
    """Refuse a space whose trials differ in length: at one step they are at different places of their schedules."""
    for key, values in space.items():
        for value in extremes(values):
            changed = override(config, [_setting(key, value)], {})
            if changed.train.growth is not None:
                raise GptlabError(
                    f"{option('prune', 'asha')}: with train.growth a run validates where its steps end, and pruning "
                    f"compares trials at the same step; leave out {option('prune')}, or set train.growth=null"
                )
            steps = changed.total_steps
            if steps != config.total_steps:
                raise GptlabError(
                    f"{option('prune', 'asha')}: {_setting(key, value)} makes a run of {steps} steps, and the "
                    f"config has "
                    f"{config.total_steps}; pruning compares trials at the same step, which says nothing where their "
                    f"lengths differ; leave out {option('prune')}, or {key}"
                )


def grid_points(space: Space) -> list[dict[str, Value]]:
    """Every combination of choices."""
    for key, values in space.items():
        if isinstance(values, Range):
            raise GptlabError(
                f"{option('param', key)}: a grid needs choices, not a range; write {key}=[A, B], or "
                f"{option('sampler', 'tpe')}"
            )
    lists = [values for values in space.values() if isinstance(values, list)]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*lists)]


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna's distributions."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for key, values in space.items():
        if isinstance(values, Range) and values.step is not None:
            # Steps that do not meet `high` end below it. Optuna would do the same, and warn each time.
            low, high, step = (Decimal(str(number)) for number in (values.low, values.high, values.step))
            values = replace(values, high=type(values.high)(low + (high - low) // step * step))
        if not isinstance(values, Range):
            found[key] = CategoricalDistribution(values)
        elif values.whole:
            found[key] = IntDistribution(int(values.low), int(values.high), values.log, int(values.step or 1))
        else:
            found[key] = FloatDistribution(values.low, values.high, values.log, values.step)
    return found


def format_parameters(values: Mapping[str, Any]) -> str:
    """`optimizer.lr=0.01, model.dim=64`."""
    return ", ".join(f"{key}={format_value(value)}" for key, value in values.items())


def format_value(value: Any) -> str:
    """A value with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
