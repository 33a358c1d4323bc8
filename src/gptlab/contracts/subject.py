"""What is checked: a component, put into its place in a tiny GPT, or a whole config made tiny."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gptlab.config import (
    SLOTS,
    RunConfig,
    Slot,
    build,
    component_names,
    config_from,
    has_stages,
    load_stage,
    validate_slot,
)
from gptlab.config.building import import_component
from gptlab.config.load import merge
from gptlab.config.messages import SlotError
from gptlab.config.preset import PREFIX, presets
from gptlab.config.signatures import locate
from gptlab.config.yamlfile import parse_yaml
from gptlab.contracts.places import NULL_DEFAULTS, nested, place_of
from gptlab.data import TokenDataset, TokenStream, open_stream
from gptlab.errors import ConfigError, GptlabError, did_you_mean, option
from gptlab.loss import IGNORE, LossSum, TokenBatch
from gptlab.model import build_model
from gptlab.model.component import declared, window_width

V, T, B = 97, 32, 8
"""Vocabulary, sequence length and rows of the tiny model and its batch."""
SEED = 1234
"""Of what dropout draws in a step."""

_SIZES = {"dim": 32, "layers": 3, "heads": 4}
_MOST_LAYERS, _MOST_HEADS = 6, 4  # of a config made small
_WINDOW = 8  # of a config made small
_LONGEST = 1024  # no check takes a longer sequence, however wide a window is
_PERTURBATION = 0.2  # standard deviation of the noise that makes no weight small
_RUN_PARTS = ("model", "loss", "optimizer", "schedule", "growth", "mix", "stream")


@dataclass(frozen=True)
class Subject:
    """A component (or a whole config) in a tiny run.

    `kind`: its slot, or "config". `config`: the tiny run. `parts`: the parts of a run that it changes, of model, loss,
    optimizer, schedule, growth, mix, stream. `component`: its class, None for a config. `file`: where that is written.
    """

    kind: str
    label: str
    config: RunConfig
    parts: tuple[str, ...]
    component: type | None = None
    file: Path | None = None
    value: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)  # what else of the config the component needs
    backend: str = "inductor"  # of torch.compile

    @property
    def length(self) -> int:
        """T of this subject: longer than usual where its windows are wide."""
        return self.config.train.sequence_length

    def model(
        self, *, seed: int = 1, perturbed: bool = False, documents: bool = False, dropout: float = 0.0
    ) -> nn.Module:
        """A new tiny model on the CPU, in training mode, without dropout unless it is asked for.

        `perturbed` adds Normal(0, 0.2) to every parameter: a projection that starts at zero hides what its input does.
        `documents` turns `document_mask` on wherever a component has it.
        """

        def change(key: str, value: Any) -> Any:
            if key.endswith("dropout"):
                return dropout if key == "dropout" or value is not None else None
            return True if key == "document_mask" and documents else value

        values = {**self.config.plain(), "seed": seed, "model": _changed(self.config.model, change)}
        model = build_model(config_from(values), V)
        return perturb_weights(model) if perturbed else model

    def loss(self) -> Any:
        """The run's loss."""
        return build("loss", self.config.loss)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The run's optimizer, over `model`."""
        made: torch.optim.Optimizer = build(
            "optimizer", self.config.optimizer, named_parameters=list(model.named_parameters())
        )
        return made

    def schedule(self, total_steps: int = 100) -> Any:
        """The run's schedule, over `total_steps`."""
        return build("schedule", self.config.schedule, total_steps=total_steps)

    def growth(self) -> Any:
        """The growth of the run's batch, for a model of ten thousand parameters."""
        train = self.config.train
        return build("growth", train.growth or "Fixed", batch_tokens=train.batch_tokens, parameters=10_000)

    def mixture(self) -> Any:
        """The run's mixture, over made-up data sets of its names, each half as large as the one before."""
        tokens = {name: 2**20 >> i for i, name in enumerate(self.config.data.sources or {})}
        return build("mix", self.config.data.mix, sources=tokens)

    def token_stream(self, dataset: TokenDataset, total_steps: int = 6) -> TokenStream:
        """The run's batches from one data set."""
        return open_stream(self.config, {"data": dataset}, total_steps=total_steps)

    def ids(self, rows: int = B, *, seed: int = 0, length: int | None = None) -> Tensor:
        """Random token ids, (rows, T)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(V, (rows, length or self.length), generator=generator)

    def batch(self, *, seed: int = 0) -> TokenBatch:
        """A batch (B, T) of packed documents, in which rows have different numbers of targets."""
        ids = self.ids(B, seed=seed, length=self.length + 1)
        inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].clone()
        for row in range(B):
            targets[row, : row + 1] = IGNORE
        return TokenBatch(inputs, targets, self.documents(B))

    def documents(self, rows: int) -> Tensor:
        """Numbers of packed documents, (rows, T): two in even rows, three in odd ones."""
        numbers = torch.zeros(rows, self.length, dtype=torch.long)
        for row in range(rows):
            for cut in self.cuts(row):
                numbers[row, cut:] += 1
        return numbers

    def cuts(self, row: int) -> list[int]:
        """Where documents after the first begin in `row`."""
        return [self.length * 2 // 5] if row % 2 == 0 else [self.length // 6, self.length * 3 // 4]

    def declared(self, name: str, default: Any = None) -> Any:
        """A class attribute of the component (`off`, `baseline`, …)."""
        value = declared(self.component, name)
        return default if value is None else value

    def with_value(self, value: Any) -> Subject:
        """The same place with another component (or other arguments) in it."""
        return component_subject(self.kind, value, beside=self.beside, backend=self.backend)


def rows_of(batch: TokenBatch, start: int, stop: int) -> TokenBatch:
    """Rows `start` to `stop` of a batch."""
    piece = slice(start, stop)
    return TokenBatch(batch.inputs[piece], batch.targets[piece], batch.documents[piece])


@torch.no_grad()
def perturb_weights(model: nn.Module) -> nn.Module:
    """Add Normal(0, 0.2) to every trainable parameter, drawn by its name, so that nothing is nearly linear or zero."""
    from gptlab.model.initialization import parameter_generator

    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=parameter_generator(0, f"wild {name}"))
            parameter.add_(noise.to(parameter.dtype) * _PERTURBATION)
    return model


def seeded_hidden(model: nn.Module, ids: Tensor, documents: Tensor | None = None) -> Tensor:
    """Hidden states (rows, T, D) of a forward pass whose dropout, if there is any, is always the same."""
    torch.manual_seed(SEED)
    hidden: Tensor = model(ids, documents)
    return hidden


def loss_sum(loss: Any, model: nn.Module, batch: TokenBatch) -> LossSum:
    """Loss of a batch, with the same dropout each time."""
    torch.manual_seed(SEED)
    out: LossSum = loss(model, batch)
    return out


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all gradients by name; zeros where there is none."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def _changed(slot: Slot, change: Callable[[str, Any], Any]) -> dict[str, Any]:
    """A slot value in which every argument, nested ones too, has become `change(name, value)`."""
    return {
        key: _changed(slot[key], change) if isinstance(slot[key], Slot) else change(key, value)
        for key, value in slot.plain().items()
    }


# ---------------------------------------------------------------- making subjects


def component_subject(
    kind: str, value: Any, *, beside: Mapping[str, Any] | None = None, backend: str = "inductor"
) -> Subject:
    """A component in a tiny GPT of three layers. `value`: a slot value (a name, a mapping with `use`, a Slot).

    `beside`: what else of the config must be so for the component to work, as nested dictionaries; by default its class
    attribute `beside`. Raises ConfigError where the value does not fit the slot.
    """
    path = place_of(kind)
    try:
        slot = validate_slot(kind, value)
    except SlotError as error:
        raise ConfigError(f"{'.'.join((kind, *error.path))}: {error.message}") from None
    component = _import(kind, slot.use)
    beside = declared(component, "beside") if beside is None else beside
    given = value.plain() if isinstance(value, Slot) else {"use": value} if isinstance(value, str) else dict(value)
    if kind == "model":
        given = {**{name: size for name, size in _SIZES.items() if name in slot}, **given}
    values: dict[str, Any] = {
        "name": "check",
        "model": dict(_SIZES),
        "train": {"sequence_length": T, "batch_tokens": B * T, "dtype": "float32"},
    }
    if kind == "mix":
        values["data"] = {"sources": {name: name for name in source_names(given)}}
    if kind == "model":
        config = config_from(merge({**values, "model": given}, dict(beside)))
    else:
        config = config_from(merge(merge(values, dict(beside)), nested(path, given)))
    _, file, name = locate(kind, slot.use)
    shown = {key: item for key, item in given.items() if key != "use" and not (kind == "model" and key in _SIZES)}
    subject = Subject(
        kind=kind,
        label=f"{kind} {name}" + (f" {shown}" if shown else ""),
        config=config,
        parts=(kind,) if kind in NULL_DEFAULTS else (path[0],),
        component=component,
        file=file,
        value=slot.plain(),
        beside=dict(beside),
        backend=backend,
    )
    return _long_enough(subject)


def config_subject(path: str | Path, *, stage: str | None = None, backend: str = "inductor") -> Subject:
    """A whole config with its sizes made small: at most six layers and four heads (as many queries a key as it has),
    D = 8 · H, windows of 8, T = 32, V = 97.

    An MLP's `hidden` shrinks with D; the width of heads, ratios and all else stay as they are. Of a config of
    stages it is the one called `stage` (None: the first). Raises ConfigError as `load_stage` does.
    """
    config = load_stage(path, name=stage)
    values = config.plain()
    model = values["model"]
    if {"dim", "heads", "head_dim"} <= model.keys():
        dim, head_dim = model["dim"], model["head_dim"] or model["dim"] // model["heads"]
        block = model.get("block") or {}
        heads = _fewer_heads(model, block.get("attention") or {})
        model |= {"head_dim": head_dim, "heads": heads, "dim": 8 * heads}
        mlp = block.get("mlp") or {}
        if isinstance(hidden := mlp.get("hidden"), int):
            mlp["hidden"] = 8 * max(1, hidden * heads // dim)
    if "layers" in model:
        model["layers"] = min(_MOST_LAYERS, model["layers"])
        block = model.get("block") or {}
        attention = block.get("attention") or {}
        for part, key in ((block, "without_attention"), (attention, "without_rotation")):
            part |= {key: [i for i in part[key] if i < model["layers"]]} if key in part else {}
        _narrow_window(attention)
    model |= {key: None for key in ("context_length",) if key in model}
    values["train"] |= {"sequence_length": T, "batch_tokens": B * T, "tokens": B * T * 100, "dtype": "float32"}
    unset = {kind for kind, (section, _) in NULL_DEFAULTS.items() if getattr(getattr(config, section), kind) is None}
    subject = Subject(
        kind="config",
        label=f"config {path}" + (f", {config.name}" if has_stages(path) else ""),
        config=config_from(values),
        parts=tuple(part for part in _RUN_PARTS if part not in unset),
        backend=backend,
    )
    return _long_enough(subject)


def _fewer_heads(model: Mapping[str, Any], attention: dict[str, Any]) -> int:
    """The number of query heads of a config made small; its key-value heads become fewer in `attention`.

    Under muP the number is part of the parametrization, and stays.
    """
    heads: int = model["heads"]
    kv_heads: int = attention.get("kv_heads") or heads
    if model.get("mup") or heads <= _MOST_HEADS:
        return heads
    group = heads // kv_heads
    kept = max(1, _MOST_HEADS // group)
    if attention.get("kv_heads"):
        attention["kv_heads"] = min(kept, kv_heads)
    return group * min(kept, kv_heads)


def _narrow_window(attention: dict[str, Any]) -> None:
    """A window that a tiny sequence can leave, and its growth in proportion."""
    window = attention.get("window")
    if not isinstance(window, int) or window <= _WINDOW:
        return
    grows = attention.get("window_start") is not None
    sizes = {key: attention[key] for key in ("window_start", "window_step") if grows and attention.get(key) is not None}
    attention |= {key: max(1, size * _WINDOW // window) for key, size in sizes.items()} | {"window": _WINDOW}


def find_subject(
    target: str, *, slot: str | None = None, stage: str | None = None, backend: str = "inductor"
) -> Subject:
    """What a person names: a config file, a component's name, an import path, a file, or an inline YAML mapping.

    `slot` says which slot it is for; by default its class attribute `slot` does, or the one menu that has the name.
    `stage`: which stage of a config that has some; by default the first.
    Raises ConfigError where that is not clear or does not exist.
    """
    if target.endswith((".yaml", ".yml")) or target.removeprefix(PREFIX) in presets():
        if slot is not None:
            raise ConfigError(
                f"{option('slot', slot)}: {target} is a whole config, which has all slots; leave {option('slot')} out"
            )
        return config_subject(target, stage=stage, backend=backend)
    if stage is not None:
        raise ConfigError(
            f"{option('stage', stage)}: {target} is a component, which has no stages; leave {option('stage')} out"
        )
    value: Any = target
    if target.lstrip().startswith("{"):
        value, _ = parse_yaml(target, "the value to check")
        if not isinstance(value, dict) or not isinstance(value.get("use"), str):
            raise ConfigError(
                f"{target}: a slot value needs `use: NAME`, for example '{{use: Attention, kv_heads: 2}}'"
            )
        value = {**value, "use": _absolute_use(value["use"])}
    else:
        value = _absolute_use(value)
    return component_subject(
        slot or _slot_of(value if isinstance(value, str) else value["use"]), value, backend=backend
    )


def _absolute_use(use: str) -> str:
    file, colon, name = use.rpartition(":")
    if not colon and use.endswith(".py"):
        raise ConfigError(f"{use}: which class of it? Write {use}:Name")
    return f"{Path(file).resolve()}:{name}" if file.endswith(".py") else use


def _slot_of(use: str) -> str:
    if ":" not in use:
        found = [kind for kind in SLOTS if use in component_names(kind)]
        if len(found) == 1:
            return found[0]
        everything = sorted({name for kind in SLOTS for name in component_names(kind)})
        if not found:
            raise ConfigError(f"no component is called {use!r}; {did_you_mean(use, everything)}")
        raise ConfigError(
            f"{use!r} is on the menus of {' and '.join(found)}; say which with {option('slot', found[0])}"
        )
    component = _import("model", use)
    kind = getattr(component, "slot", None)
    if kind not in SLOTS:
        problem = "does not say which slot it is for" if kind is None else f"says slot = {kind!r}, which does not exist"
        raise ConfigError(f"{use} {problem}; use {option('slot', 'KIND')}, or write `slot = KIND` in the class")
    return str(kind)


def _import(kind: str, use: str) -> type:
    """The class that `use` names. Raises ConfigError where its module has none of the name, or cannot be imported."""
    try:
        return import_component(kind, use)
    except AttributeError:
        module, file, name = locate(kind, use)
        raise ConfigError(f"nothing called {name!r} in {module or file}; check the spelling") from None
    except ImportError as error:
        raise ConfigError(f"{use} cannot be imported: {error}; install what it needs") from None


def source_names(value: Any) -> list[str]:
    """Names of data sets in a mixture's arguments; `a` and `b` where it names none."""
    found: dict[str, None] = {}

    def walk(item: Any) -> None:
        if isinstance(item, Mapping):
            weights = item.get("weights")
            found.update(dict.fromkeys(weights) if isinstance(weights, Mapping) else {})
            for inner in item.values():
                walk(inner)
        elif isinstance(item, list | tuple):
            for inner in item:
                walk(inner)

    walk(value)
    return list(found) or ["a", "b"]


def _long_enough(subject: Subject) -> Subject:
    """Sequences twice as long as the widest window of attention, so that a window is something to leave."""
    if "model" not in subject.parts:
        return subject
    try:
        model = build_model(subject.config, V, device="meta")
    except GptlabError:
        raise
    except (Exception, SystemExit):  # contract `builds` says what is wrong
        return subject
    wanted = min(_LONGEST, 2 * max((window_width(module) or 0 for module in model.modules()), default=0))
    if wanted <= subject.length:
        return subject
    return at_length(subject, wanted)


def at_length(subject: Subject, length: int) -> Subject:
    """The same subject with sequences of `length` tokens."""
    values = subject.config.plain()
    values["train"] |= {"sequence_length": length, "batch_tokens": B * length, "tokens": B * length * 100}
    return dataclasses.replace(subject, config=config_from(values))
