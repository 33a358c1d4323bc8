"""The table of GPUs: what cards can do and what an hour of one costs. One table, for planning and for MFU.

The package's own `gpus.yaml` says how it is written; a user's file is laid over it.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.config.yamlfile import KeyPath, Origin, read_yaml
from gptlab.errors import ConfigError, did_you_mean, option

USER_TABLE = Path("gpus.yaml")
"""Read from the working folder where it exists, and laid over the package's own."""
_SHIPPED = Path(__file__).with_name("gpus.yaml")
_NUMBERS = ("peak_tflops", "memory_gib", "bandwidth_gb_s", "dollars_per_hour")
_TEXTS = ("driver", "priced", "source")


@dataclass(frozen=True)
class Gpu:
    """One card. `peak`: dense bfloat16 FLOP/s; `memory`: bytes; `bandwidth`: bytes a second; `priced`: when the price
    was seen, and `source` where; `driver`: text by which the driver's name of the card is known."""

    name: str
    peak: float
    memory: int
    bandwidth: float
    dollars_per_hour: float
    priced: str
    source: str
    driver: str


def read_gpus(table: Path | None = None) -> dict[str, Gpu]:
    """The cards by name: the package's, and over them those of `table` (None: ./gpus.yaml, where there is one).

    Raises ConfigError naming file and line for an unknown key, a number that cannot be, or a new card that leaves
    something out.
    """
    cards = {name: dict(values) for name, values in _shipped().items()}
    if table is None and USER_TABLE.is_file():
        table = USER_TABLE
    if table is not None:
        for name, values in _read(table).items():
            cards[name] = {"driver": name, **cards.get(name, {}), **values}
            for key in _NUMBERS:
                if key not in cards[name]:
                    raise ConfigError(f"{table}: gpus.{name}: {key} is missing; a card of your own needs all numbers")
    return {name: _gpu(name, values) for name, values in cards.items()}


def find_gpu(name: str, cards: Mapping[str, Gpu]) -> Gpu:
    """The card that a person means by `name`: case, and "GeForce" or "NVIDIA" before it, do not matter.

    Raises ConfigError for a card that is not in the table.
    """
    wanted = _squeezed(name)
    for card in cards.values():
        if _squeezed(card.name) in (wanted, f"rtx{wanted}"):
            return card
    close = [card.name for card in cards.values() if wanted and _squeezed(card.name).startswith(wanted)]
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else did_you_mean(name, cards)
    raise ConfigError(f"{option('gpu', name)}: not in the table of GPUs; {hint} A card of your own goes into gpus.yaml")


def gpu_of_driver(driver_name: str, cards: Mapping[str, Gpu]) -> Gpu | None:
    """The card that a driver calls `driver_name`, such as "NVIDIA GeForce RTX 4090": the longest match, or None."""
    found = [card for card in cards.values() if re.search(rf"(?<!\w){re.escape(card.driver)}(?!\w)", driver_name)]
    return max(found, key=lambda card: len(card.driver), default=None)


def _squeezed(name: str) -> str:
    return re.sub(r"nvidia|geforce|amd|[\s_-]", "", name.lower())


def _gpu(name: str, values: Mapping[str, Any]) -> Gpu:
    return Gpu(
        name=name,
        peak=values["peak_tflops"] * 1e12,
        memory=int(values["memory_gib"] * 2**30),
        bandwidth=values["bandwidth_gb_s"] * 1e9,
        dollars_per_hour=float(values["dollars_per_hour"]),
        priced=values["priced"],
        source=values["source"],
        driver=values["driver"],
    )


@functools.cache
def _shipped() -> dict[str, dict[str, Any]]:
    return {name: {"driver": name, **values} for name, values in _read(_SHIPPED).items()}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The cards that a table says something about, each with only what it says; its date and source go to each."""
    values, origins = read_yaml(path)
    _check_keys(values, ("priced", "source", "gpus"), (), path, origins)
    common = {key: values[key] for key in ("priced", "source") if key in values}
    cards = values.get("gpus", {})
    if not isinstance(cards, dict):
        raise ConfigError(f"{origins[('gpus',)]}: gpus must be a mapping of card names, found {cards!r}")
    found = {}
    for name, card in cards.items():
        if not isinstance(card, dict):
            raise ConfigError(f"{origins[('gpus', name)]}: gpus.{name} must be a mapping of {', '.join(_NUMBERS)}")
        _check_keys(card, (*_NUMBERS, *_TEXTS), ("gpus", name), path, origins)
        # A price is as old as the line that states it, and where the user says no date, it is the user's own.
        stamp = {"priced": "undated", "source": str(path), **common} if "dollars_per_hour" in card else {}
        found[name] = {**stamp, **card}
    for key, value in common.items():
        _check_text((key,), value, origins)
    return found


def _check_keys(
    values: Mapping[str, Any], known: tuple[str, ...], above: KeyPath, path: Path, origins: Mapping[KeyPath, Origin]
) -> None:
    for key, value in values.items():
        place = (*above, key)
        if key not in known:
            raise ConfigError(f"{origins[place]}: unknown key {key!r}; {did_you_mean(key, known)}")
        if key in _NUMBERS:
            fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            lowest = "0 or more" if key == "dollars_per_hour" else "above 0"
            if not fits or value < 0 or (value == 0 and key != "dollars_per_hour"):
                raise ConfigError(f"{origins[place]}: {'.'.join(place)}: expected a number {lowest}, found {value!r}")
        elif key in _TEXTS:
            _check_text(place, value, origins)


def _check_text(place: KeyPath, value: Any, origins: Mapping[KeyPath, Origin]) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{origins[place]}: {'.'.join(place)}: expected text, found {value!r}; put it in quotes")
