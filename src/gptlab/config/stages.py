"""`stages:` of a config: several runs, one after the other, each from the weights of another.

A stage is a diff over the config's own sections. What comes of it is an ordinary `RunConfig`, so that nothing beyond
this module knows of stages: one loop, one hash, one kind of run folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from gptlab.config.load import (
    absolute_paths,
    apply_layer,
    load_config,
    override,
    read_layers,
    require_optimizer,
    resolve,
)
from gptlab.config.load import json_schema as one_run_schema
from gptlab.config.messages import SlotError
from gptlab.config.schema import RunConfig, Seed
from gptlab.config.start import is_pinned
from gptlab.config.yamlfile import KeyPath, Origin, parse_yaml
from gptlab.errors import ConfigError, did_you_mean, option

OWN_KEYS = ("name", "from", "seeds", "soup")
"""Keys of a stage beside the sections of a config."""
SOUPS = ("uniform", "greedy")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_PLACEHOLDER = "runs/none@0000000000000000"  # to ask a model whether it can start from a run


@dataclass(frozen=True)
class Stage:
    """One stage, resolved.

    Attributes:
        name: unique among the stages.
        config: the run that it is, named NAME-STAGE. Its `model.init_from` is null where another stage comes before,
            because the weights that it stands for are not there yet (`runs` puts them in).
        start: the stage whose weights it starts from; None where `config` says all: a run, or initial weights.
        seeds: data seeds of its branches; empty for the one run of `config`.
        soup: how its branches become one run.
    """

    name: str
    config: RunConfig
    start: str | None = None
    seeds: tuple[int, ...] = ()
    soup: Literal["uniform", "greedy"] | None = None

    def runs(self, start: str | None) -> list[RunConfig]:
        """The runs to train, one a branch. `start`: the run to start from, pinned as `model.init_from` is."""
        config = self.config
        if start is not None:
            config = config.model_copy(update={"model": config.model.replace(init_from=start)})
        if not self.seeds:
            return [config]
        kept = config.seed
        seeds = [Seed(init=kept.init, data=seed, dropout=kept.dropout) for seed in self.seeds]
        return [config.model_copy(update={"seed": seed}) for seed in seeds]

    def plain(self) -> dict[str, Any]:
        """The stage with every default written out, ready for YAML, and to be read again."""
        values = self.config.plain()
        begin = values["model"].pop("init_from", None) if self.start is None else self.start
        if self.start is not None:
            values["model"].pop("init_from")
        own = {"name": self.name, "from": begin, "seeds": list(self.seeds) or None, "soup": self.soup}
        return {**own, **{key: value for key, value in values.items() if key != "name"}}


def has_stages(source: str | Path) -> bool:
    """Whether the config in `source` has `stages`. Raises ConfigError where it cannot be read."""
    return any("stages" in layer for _, layer, _ in read_layers(source))


def load_stages(source: str | Path, overrides: Sequence[str] = ()) -> list[Stage]:
    """The stages of the config in `source`, in their order.

    Overrides come last: `a.b=c` changes every stage, `stages.NAME.a.b=c` one of them. Raises ConfigError naming file
    and line.
    """
    layers = read_layers(source)
    written: Any = None
    places: dict[KeyPath, Origin] = {}
    for file, layer, origins in layers:
        if "stages" in layer:
            written = layer.pop("stages")
            written = [absolute_paths(item, file.parent) for item in written] if isinstance(written, list) else written
            places = {path[1:]: origin for path, origin in origins.items() if path[0:1] == ("stages",)}
    if not isinstance(written, list) or not written:
        where = places.get((), source)
        raise ConfigError(
            f"{where}: `stages` must be a list of stages: `- name: pretrain`, and what differs", key="stages"
        )
    base, origins = resolve(layers)
    common, of_stage = _sort_overrides(overrides)
    of_base = [
        text for text in common if _split_key(text) == ["name"] or _split_key(text)[:2] == ["model", "init_from"]
    ]
    base = override(base, of_base, origins)  # where the first stage starts; the others say `from`
    common = [text for text in common if text not in of_base]
    names = _names(written, places)
    if unknown := [name for name in of_stage if name not in names]:
        raise ConfigError(f"{option('set', f'stages.{unknown[0]}')}: no such stage; {did_you_mean(unknown[0], names)}")
    stages: list[Stage] = []
    for number, name in enumerate(names):
        here = {path[1:]: origin for path, origin in places.items() if path[:1] == (str(number),)}
        own, changes = _own_overrides(name, of_stage.get(name, []), here)
        stage = _StageEntry(base, {**written[number], **own}, origins, here, names)
        stages.append(stage.read(stages, [*common, *changes]))
        if stages[-1].start is None:  # of the others, the optimizer is that of what they go on from
            later = (_split_key(text)[0] for text in (*common, *changes))
            sections = {*(path[0] for path in origins if path), *written[number], *later}
            require_optimizer(stages[-1].config, sections, source)
    return stages


def load_stage(source: str | Path, overrides: Sequence[str] = (), name: str | None = None) -> RunConfig:
    """The config of one run: that in `source` or, of stages, that of the one called `name` (None: of the first).

    Raises ConfigError as `load_config` and `load_stages` do, and for a `name` that is no stage's.
    """
    if not has_stages(source):
        if name is not None:
            raise ConfigError(f"{option('stage', name)}: {source} has no stages; leave {option('stage')} out")
        return load_config(source, overrides)
    stages = {stage.name: stage.config for stage in load_stages(source, overrides)}
    if name is not None and name not in stages:
        raise ConfigError(f"{option('stage', name)}: {source} has no such stage; {did_you_mean(name, stages)}")
    return stages[next(iter(stages)) if name is None else name]


def json_schema() -> dict[str, Any]:
    """JSON Schema of a config file, for editors: completion, types and descriptions, components and stages included."""
    schema = one_run_schema()
    sections = {key: value for key, value in schema["properties"].items() if key not in ("name", "base")}
    own = {
        "name": {"type": "string", "pattern": f"^{_NAME.pattern}$", "description": "runs are named NAME-STAGE-…"},
        "from": {
            "type": ["string", "null"],
            "description": "a stage before this one (the last by default), the path of a run, or null: initial weights",
        },
        "seeds": {
            "type": ["array", "null"],
            "items": {"type": "integer", "minimum": 0},
            "description": "data seeds: the stage is trained once with each",
        },
        "soup": {"enum": [*SOUPS, None], "description": "average the runs of `seeds` into one"},
    }
    stage = {
        "type": "object",
        "additionalProperties": False,
        "required": ["name"],
        "properties": {**own, **sections},
    }
    description = "several runs, one after the other, each a diff against the rest of this file"
    schema["properties"]["stages"] = {"type": "array", "minItems": 1, "items": stage, "description": description}
    return schema


@dataclass(frozen=True)
class _StageEntry:
    """An entry of `stages`, as it is written."""

    base: RunConfig
    item: dict[str, Any]
    origins: Mapping[KeyPath, Origin]  # of the config's own values
    places: Mapping[KeyPath, Origin]  # of the stage's
    names: list[str]  # of all stages

    def read(self, before: Sequence[Stage], overrides: Sequence[str]) -> Stage:
        """Resolve it. `before`: the stages before it."""
        name = self.item["name"]
        start, run = self._find_start(before)
        layer = {key: value for key, value in self.item.items() if key not in OWN_KEYS}
        values = self.base.plain() | {"name": f"{self.base.name}-{name}"}
        origins = {**self.origins, **{path: place for path, place in self.places.items() if path}}
        if before or "from" in self.item:
            values["model"].pop("init_from", None)  # the config's own is where the first stage starts
        if run is not None:
            model = layer.get("model") or {}
            layer["model"] = {**({"use": model} if isinstance(model, str) else model), "init_from": run}
            origins["model", "init_from"] = origins["from",]
        config = override(apply_layer(values, layer, origins), overrides, origins)
        if start is not None:
            self._check_start(config, next(stage for stage in before if stage.name == start))
        seeds = self._seeds()
        return Stage(name, config, start, seeds, self._soup(seeds))

    def _find_start(self, before: Sequence[Stage]) -> tuple[str | None, str | None]:
        """The stage, or the run, to start from."""
        known = [stage.name for stage in before]
        if "from" not in self.item:
            return (known[-1] if known else None), None
        begin = self.item["from"]
        if begin is None or begin in known:
            return begin, None
        if not isinstance(begin, str):
            self._refuse("from", f"must be the name of a stage, the path of a run, or null; found {begin!r}")
        if begin in self.names:
            self._refuse("from", f"{begin!r} is not before {self.item['name']!r}; stages run in the order of the file")
        if not (is_pinned(begin) or "/" in begin or Path(begin).is_dir()):
            self._refuse("from", f"no stage {begin!r} before this one, and no run; {did_you_mean(begin, known)}")
        return None, begin

    def _check_start(self, config: RunConfig, start: Stage) -> None:
        if len(start.seeds) > 1 and start.soup is None:
            self._refuse("from", f"stage {start.name!r} ends with {len(start.seeds)} runs; give it `soup: uniform`")
        try:
            config.model.replace(init_from=_PLACEHOLDER)
        except SlotError:
            self._refuse("from", f"model {config.model.use} cannot start from a run; write `from: null`")

    def _seeds(self) -> tuple[int, ...]:
        seeds = self.item.get("seeds")
        if seeds is None:
            return ()
        whole = isinstance(seeds, list) and all(
            isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in seeds
        )
        if not whole or not seeds or len(set(seeds)) != len(seeds):
            self._refuse("seeds", f"must be a list of different whole numbers, as [1, 2, 3]; found {seeds!r}")
        return tuple(seeds)

    def _soup(self, seeds: tuple[int, ...]) -> Literal["uniform", "greedy"] | None:
        soup = self.item.get("soup")
        if soup is not None and soup not in SOUPS:
            self._refuse("soup", f"must be {' or '.join(SOUPS)}, or null; found {soup!r}")
        if soup is not None and len(seeds) < 2:
            self._refuse("soup", "is made of several runs; give the stage `seeds: [1, 2, 3]`")
        return cast(Literal["uniform", "greedy"] | None, soup)

    def _refuse(self, key: str, message: str) -> NoReturn:
        where = self.places.get((key,), self.places[()])
        dotted = f"stages.{self.item['name']}.{key}"
        raise ConfigError(f"{where}: {dotted}: {message}", key=dotted)


def _names(written: Sequence[Any], places: Mapping[KeyPath, Origin]) -> list[str]:
    """The name of each stage. Raises ConfigError for one that is no mapping of known keys, or has no own name."""
    names: list[str] = []
    allowed = [*OWN_KEYS, *(key for key in RunConfig.model_fields if key != "name")]
    for number, item in enumerate(written):
        here = (str(number),)
        if not isinstance(item, dict):
            raise ConfigError(
                f"{places[here]}: stages: a stage is a mapping with a `name`, found {item!r}", key="stages"
            )
        if unknown := [key for key in item if key not in allowed]:
            where, hint = places[*here, unknown[0]], did_you_mean(unknown[0], allowed)
            raise ConfigError(f"{where}: stages: unknown key {unknown[0]!r}; {hint}", key="stages")
        name = item.get("name")
        where = places.get((*here, "name"), places[here])
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{where}: stages: a stage needs a `name` of letters, digits, - and _; found {name!r}", key="stages"
            )
        if name in names:
            raise ConfigError(f"{where}: stages: two stages are called {name!r}; rename one", key="stages")
        if isinstance(item.get("model"), dict) and "init_from" in item["model"]:
            where = places[*here, "model", "init_from"]
            raise ConfigError(
                f"{where}: stages.{name}: write `from:` instead of model.init_from; it takes a run too", key="stages"
            )
        names.append(name)
    return names


def _split_key(text: str) -> list[str]:
    """The key of an override, split at its dots."""
    return text.partition("=")[0].strip().split(".")


def _sort_overrides(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides of every stage, and those of one by its name, without `stages.NAME`."""
    common: list[str] = []
    of_stage: dict[str, list[str]] = {}
    for text in overrides:
        key = _split_key(text)
        if key[0] != "stages":
            common.append(text)
            continue
        if len(key) < 3 or "=" not in text:
            raise ConfigError(
                f"{option('set', text)}: write it as stages.NAME.section.key=value; the list itself is the file's"
            )
        if key[2:] == ["name"] or key[2:4] == ["model", "init_from"]:
            raise ConfigError(
                f"{option('set', text)}: a stage keeps its name, and starts where stages.{key[1]}.from says"
            )
        of_stage.setdefault(key[1], []).append(text.strip().removeprefix(f"stages.{key[1]}."))
    return common, of_stage


def _own_overrides(name: str, texts: Sequence[str], places: dict[KeyPath, Origin]) -> tuple[dict[str, Any], list[str]]:
    """Values of `from`, `seeds` and `soup`, and the overrides that are of the config's sections."""
    own: dict[str, Any] = {}
    sections = []
    for text in texts:
        key = ".".join(_split_key(text))
        if key in OWN_KEYS:
            own[key], _ = parse_yaml(
                text.partition("=")[2].strip() or "null", f"{option('set', f'stages.{name}.{text}')}"
            )
            places[(key,)] = Origin(f"{option('set', f'stages.{name}.{text}')}")
        else:
            sections.append(text)
    return own, sections
