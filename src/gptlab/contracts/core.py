"""What a contract is, and how a subject is held to all of them.

A contract is a function `(subject) -> None` with a name and a one-line statement. It returns where the statement
holds, raises `Broken` where it does not (what, where, how to mend it), and `Skipped` where it has nothing to say.
`CONTRACTS` keeps them in the order in which they are run and shown.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from gptlab.console import progress
from gptlab.errors import ConfigError, GptlabError, did_you_mean

if TYPE_CHECKING:
    from gptlab.contracts.subject import Subject

TOLERANCE = 1e-5
"""Largest difference between what must be equal, as a share of the largest value: float32 rounding in another order."""


class Broken(Exception):
    """A contract does not hold. `where`: the tensor and the position; `fix`: how it is usually mended."""

    def __init__(self, message: str, *, where: str, fix: str) -> None:
        super().__init__(message)
        self.message, self.where, self.fix = message, where, fix


class Skipped(Exception):
    """A contract has nothing to say about this subject; the text is the reason."""


@dataclass(frozen=True)
class Contract:
    """One promise. `parts`: which parts of a run it is about (`Subject.parts`)."""

    name: str
    states: str
    parts: tuple[str, ...]
    run: Callable[[Subject], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one contract. `detail`: what is wrong, or why it was skipped."""

    contract: Contract
    status: Literal["holds", "broken", "skipped"]
    detail: str = ""
    where: str = ""
    fix: str = ""


CONTRACTS: dict[str, Contract] = {}


def contract(name: str, states: str, *parts: str) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Register a function as the contract `name` about `parts`."""

    def register(run: Callable[[Subject], None]) -> Callable[[Subject], None]:
        CONTRACTS[name] = Contract(name, states, parts, run)
        return run

    return register


def order_contracts(*modules: ModuleType) -> None:
    """Put `CONTRACTS` into the order of the modules that hold them, whichever was imported first."""
    order = [module.__name__ for module in modules]
    ordered = sorted(CONTRACTS.values(), key=lambda item: order.index(item.run.__module__))
    CONTRACTS.clear()
    CONTRACTS.update({item.name: item for item in ordered})


def run_contracts(subject: Subject, only: Collection[str] = ()) -> list[Outcome]:
    """Hold `subject` to every contract (or to those named in `only`), in order.

    Raises ConfigError where `only` names none, and what building the subject raises for a user's mistake.
    """
    for name in only:
        if name not in CONTRACTS:
            raise ConfigError(f"no contract is called {name!r}; {did_you_mean(name, CONTRACTS)}")
    chosen = [item for item in CONTRACTS.values() if not only or item.name in only or item.name == "builds"]
    outcomes: list[Outcome] = []
    with progress(unit="contracts", transient=True) as bar:
        task = bar.add_task("check", total=len(chosen))
        for item in chosen:
            bar.update(task, description=f"check {item.name}")
            outcomes.append(_hold(item, subject))
            bar.advance(task)
            if item.name == "builds" and outcomes[-1].status == "broken":
                return [
                    *outcomes,
                    *(Outcome(other, "skipped", "it does not build") for other in chosen[len(outcomes) :]),
                ]
    return outcomes


def _hold(item: Contract, subject: Subject) -> Outcome:
    about = [part for part in item.parts if part in subject.parts]
    if not about:
        return Outcome(item, "skipped", f"about {', '.join(item.parts)}; not what the slot {subject.kind} changes")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            item.run(subject)
    except Broken as broken:
        return Outcome(item, "broken", broken.message, broken.where, broken.fix)
    except Skipped as skipped:
        return Outcome(item, "skipped", str(skipped))
    except GptlabError:
        raise  # a value that does not fit is the user's mistake, not a broken promise
    except (Exception, SystemExit) as error:
        return Outcome(item, "broken", *describe_exception(error, subject))
    return Outcome(item, "holds")


def describe_exception(error: Exception, subject: Subject) -> tuple[str, str, str]:
    """(what, where, fix) of an exception that came out of a component."""
    lines = str(error).strip().splitlines() or [""]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if subject.file is not None and frame.filename == str(subject.file)]
    place = (own or frames)[-1]
    what = f"raised {type(error).__name__}: {lines[0][:200]}"
    return what, f"{place.filename}:{place.lineno}, in {place.name}", "make that line work on the inputs of this check"


# ---------------------------------------------------------------- comparing


_AXES = {1: ("element",), 2: ("row", "column"), 3: ("row", "position", "channel"), 4: ("row", "head", "position", "")}


def position(tensor: Tensor, index: Tensor, axes: tuple[str, ...] | None = None) -> str:
    """An index in words: `row 0, position 12, channel 3`."""
    names = axes or _AXES.get(tensor.dim(), tuple(f"axis {i}" for i in range(tensor.dim())))
    return ", ".join(f"{name} {int(i)}" for name, i in zip(names, index, strict=True)) or "the scalar"


def require_close(
    actual: Tensor,
    expected: Tensor,
    message: str,
    *,
    name: str,
    fix: str,
    tolerance: float = TOLERANCE,
    scale: float | None = None,
    axes: tuple[str, ...] | None = None,
) -> None:
    """Raise Broken at the worst position where two tensors differ by more than `tolerance` · `scale`.

    `scale`: the largest |expected| unless given. `tolerance` 0 asks for the same bits. NaN is never equal.
    """
    if actual.shape != expected.shape:
        raise Broken(message, where=f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}", fix=fix)
    actual, expected = actual.detach().double(), expected.detach().double()
    largest = float(expected.abs().max()) if scale is None and expected.numel() else (scale or 0.0)
    difference = (actual - expected).abs()
    wrong = ~(difference <= tolerance * largest)  # so that NaN counts as wrong
    if not wrong.any():
        return
    flat = int(difference.nan_to_num(math.inf).argmax())
    worst = torch.tensor(np.unravel_index(flat, difference.shape), dtype=torch.long)
    at = position(actual, worst, axes)
    off = float(difference[tuple(worst)])
    allowed = "no difference" if tolerance == 0 else f"{tolerance * largest:.1g}"
    raise Broken(message, where=f"{name}: {at}: differs by {off:.3g} (allowed: {allowed})", fix=fix)


GRADIENT_TOLERANCE = 1e-4
"""As `TOLERANCE`, of gradients: they add up B·T terms that partly cancel."""
COMPILED_TOLERANCE = 1e-4
"""As `TOLERANCE`, where fused kernels round differently at every operation."""


def require_gradients(
    actual: dict[str, Tensor], expected: dict[str, Tensor], message: str, fix: str, tolerance: float
) -> None:
    """Equal up to `tolerance` of each parameter's largest gradient (or of 5% of the model's, if that is larger:
    some gradients are zero but for rounding, as those of the biases of keys)."""
    floor = 0.05 * max(float(g.abs().max()) for g in expected.values() if g.numel())
    for name, value in expected.items():
        scale = max(float(value.abs().max()), floor)
        axes = tuple(f"axis {i}" for i in range(value.dim()))
        require_close(
            actual[name], value, message, name=f"{name}.grad", fix=fix, tolerance=tolerance, scale=scale, axes=axes
        )
