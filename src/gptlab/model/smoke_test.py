"""What goes wrong in somebody's own component, said in one line, before a run is begun."""

from __future__ import annotations

import contextlib
import inspect
import re
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gptlab.errors import ConfigError, GptlabError

_PACKAGES = ("gptlab", "torch")
_KEEPS_SHAPE = re.compile(r"blocks\.\d+(\.(attention|mlp))?|residual|norm")
_SLOTS = ("block", "attention", "mlp", "norm", "residual")


@torch.no_grad()
def smoke_test_components(model: nn.Module, loss: Any, batch: Any) -> None:
    """A forward pass of `model` and `loss` on `batch` (a TokenBatch), where either is not gptlab's own.

    Raises ConfigError that names file, line and remedy for whatever a component of others raises or returns wrongly.
    """
    foreign = [*_foreign_modules(model), *([loss] if _is_foreign(loss) else [])]
    if not foreign:
        return
    was_training = model.training
    with torch.random.fork_rng(devices=[]), explained(model, *foreign):  # a run begins as if this had not been
        loss(model.eval(), batch)
    model.train(was_training)


@contextlib.contextmanager
def explained(model: nn.Module, *foreign: Any) -> Iterator[None]:
    """Turns what fails inside, if the model has parts that are not gptlab's, into a ConfigError of one line."""
    foreign = foreign or tuple(_foreign_modules(model))
    handles = [
        module.register_forward_hook(_require_shape)
        for name, module in model.named_modules()
        if _is_foreign(module) and (getattr(module, "slot", "") in _SLOTS or _KEEPS_SHAPE.fullmatch(name))
    ]
    try:
        yield
    except GptlabError:
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        files = {inspect.getfile(type(part)): part for part in foreign}
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename in files]
        if not foreign or (not isinstance(error, Exception) and frames[-1] not in own):
            raise  # not theirs: a defect of ours, or somebody who wants to stop
        file = own[-1].filename if own else next(iter(files))
        where = f"{file}:{own[-1].lineno}" if own else file
        what = (str(error).strip().splitlines() or [""])[0][:200]
        name = type(files[file]).__name__
        raise ConfigError(f"{where}: {type(error).__name__}: {what}; `gptlab check {file}:{name}` says more") from error
    finally:
        for handle in handles:
            handle.remove()


def _is_foreign(part: Any) -> bool:
    return type(part).__module__.partition(".")[0] not in _PACKAGES


def _foreign_modules(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if _is_foreign(module)]


def _require_shape(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    came = next(value for value in inputs if isinstance(value, Tensor))
    if isinstance(output, Tensor) and output.shape == came.shape:
        return
    cls = type(module)
    file, line = inspect.getfile(cls), inspect.getsourcelines(cls)[1]
    found = f"a tensor of {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise ConfigError(
        f"{file}:{line}: {cls.__name__} was given (B, T, D) = {list(came.shape)} and returns {found}; "
        "forward must return the shape that came in"
    )
