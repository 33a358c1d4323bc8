"""From files and `--set` to a checked `RunConfig`; and between configs, what differs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptlab.config.messages import validated
from gptlab.config.preset import PREFIX, find_config
from gptlab.config.schema import RunConfig, expand_seed
from gptlab.config.signatures import SLOTS, component_names, signature
from gptlab.config.start import is_pinned, pin, starting_run
from gptlab.config.yamlfile import KeyPath, Origin, find_origin, parse_yaml, read_yaml
from gptlab.errors import ConfigError, option
from gptlab.files import settle

Layer = tuple[Path, dict[str, Any], dict[KeyPath, Origin]]  # a file, what it says, and on which line
_COMPONENT_FILE = re.compile(r"[^:\s]+\.py:[A-Za-z_]\w*")


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in `source` (a YAML file, or a run folder that holds config.yaml), with `a.b=c` overrides applied.

    A file may name a `base:` (a path relative to it) and then says only what differs. `name` is not inherited: it is
    the file's own, or its stem. `model.init_from` brings the model of a run (`gptlab.config.start`). Raises ConfigError
    naming file and line, also for a file with `stages`, which are several runs (`load_stages`).
    """
    layers = read_layers(source)
    for _, layer, places in layers:
        if "stages" in layer:
            raise ConfigError(
                f"{places[('stages',)]}: `stages` make several runs, and one is asked for; `gptlab train` and "
                "`gptlab config show` take them all, `gptlab check`, `trace` and `mup check` one of them",
                key="stages",
            )
    config, origins = resolve(layers)
    config = override(config, overrides, origins) if overrides else config
    require_optimizer(config, {path[0] for path in origins if path}, source)
    return config


def read_layers(source: str | Path) -> list[Layer]:
    """The files that `source` is made of, the most basic first, each with its own name."""
    path = find_config(source)
    if path.is_dir() and (path / "config.yaml").is_file():
        path = path / "config.yaml"
    settle(path.parent / "code")  # of a run, whose config may name components in it
    layers = _base_chain(path)
    for file, layer, _ in layers:
        layer.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).lstrip("._-") or "run")
    return layers


def resolve(layers: Sequence[Layer]) -> tuple[RunConfig, dict[KeyPath, Origin]]:
    """The config that `layers` merge into, each over those before it, and where each value was written."""
    config, origins = RunConfig(), dict[KeyPath, Origin]()
    values: dict[str, Any] = {}
    for _, layer, places in layers:
        origins = origins | places
        config = apply_layer(values, layer, origins)
        # Resolved before the next layer, so that every `use` is written out and a diff that changes one is seen.
        values = config.plain()
    return config, origins


def apply_layer(values: dict[str, Any], layer: dict[str, Any], origins: Mapping[KeyPath, Origin]) -> RunConfig:
    """Merge `layer` over resolved `values`."""
    return _validate(merge(values, _expand_init_from(layer, origins)), origins)


def override(config: RunConfig, overrides: Sequence[str], origins: dict[KeyPath, Origin]) -> RunConfig:
    """`config` with `a.b=c` overrides applied; where they were written is added to `origins`."""
    values = config.plain()
    for text in _init_from_first(overrides):
        values = _override(values, text, origins)
    return _validate(values, origins)


def config_from(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """A config from nested dictionaries instead of a file. Raises ConfigError."""
    origins: dict[KeyPath, Origin] = {}
    config = override(apply_layer({}, absolute_paths(dict(values), Path.cwd()), origins), overrides, origins)
    require_optimizer(config, {*values, *(path[0] for path in origins)}, config.name)
    return config


def require_optimizer(config: RunConfig, written: Collection[str], where: str | Path) -> None:
    """Raise ConfigError where a run starts from weights and none of its sections, of which `written` are named, says
    with which optimizer: the default rate is one for new weights, and would spoil these without a word."""
    if "optimizer" not in written and config.plain()["model"].get("init_from") is not None:
        raise ConfigError(
            f"{where}: starts from weights (model.init_from) and says no optimizer, whose default rate is one for new "
            "weights; set optimizer.lr, for example to a tenth of what they were trained with",
            key="optimizer",
        )


def _override(values: dict[str, Any], text: str, origins: dict[KeyPath, Origin]) -> dict[str, Any]:
    """Apply one --set to `values`. `seed=4` is expanded, so that a later `seed.data=5` leaves the others 4."""
    values = merge(values, _expand_init_from(parse_override(text, origins), origins))
    return {**values, "seed": expand_seed(values["seed"])} if "seed" in values else values


def _init_from_first(overrides: Sequence[str]) -> list[str]:
    """`model.init_from` replaces the whole model, so it is applied before what changes the model."""
    return sorted(overrides, key=lambda text: text.partition("=")[0].strip() != "model.init_from")


def _expand_init_from(layer: dict[str, Any], origins: Mapping[KeyPath, Origin]) -> dict[str, Any]:
    """Pin `model.init_from` of a layer to its content (see `start`), and make that run's model the layer's.

    The layer's own `model` is merged over it. A `Replacement`, so that the model of earlier layers is dropped.
    """
    model = layer.get("model")
    if not isinstance(model, dict) or not isinstance(text := model.get("init_from"), str) or is_pinned(text):
        return layer
    try:
        pinned = pin(text)
        section = load_config(starting_run(pinned)[0]).model.plain()  # type: ignore[index]
    except ConfigError as error:
        where = find_origin(origins, ("model", "init_from"))
        parts = ("" if where is None else str(where), "model.init_from", str(error))
        raise ConfigError(": ".join(filter(None, parts)), key="model.init_from") from None
    return {**layer, "model": Replacement(merge(section, {**model, "init_from": pinned}))}


class Replacement(dict[str, Any]):
    """A mapping that replaces the one it is merged over."""


def _base_chain(path: Path) -> list[Layer]:
    """The chain of `base:` files, the most basic first."""
    chain: list[Layer] = []
    seen: list[Path] = []
    while True:
        if path.resolve() in seen:
            raise ConfigError(f"{chain[-1][0]}: `base` goes in a circle: {' -> '.join(str(p.name) for p in seen)}")
        seen.append(path.resolve())
        values, origins = read_yaml(path)
        base = values.pop("base", None)
        chain.append((path, absolute_paths(values, path.parent), origins))
        if base is None:
            return chain[::-1]
        if not isinstance(base, str):
            raise ConfigError(f"{origins[('base',)]}: `base` must be the path of one YAML file", key="base")
        try:
            target = find_config(base, path.parent)
        except ConfigError as error:
            raise ConfigError(f"{origins[('base',)]}: {error}", key="base") from None
        if not target.is_file():
            raise ConfigError(
                f"{origins[('base',)]}: no base config at {target}; the path is relative to this file, and "
                f"{PREFIX}NAME is one that comes with gptlab",
                key="base",
            )
        path = target


def absolute_paths(value: Any, folder: Path) -> Any:
    """Make the paths of component files (`./idea.py:Name`), relative to `folder`, absolute."""
    if isinstance(value, dict):
        return {key: absolute_paths(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [absolute_paths(item, folder) for item in value]
    if isinstance(value, str) and _COMPONENT_FILE.fullmatch(value):
        file, _, name = value.rpartition(":")
        return f"{(folder / file).resolve()}:{name}"
    return value


def merge(base: Any, diff: Any) -> Any:
    """Merge `diff` over `base`: mappings deeply, everything else is replaced.

    A slot is replaced whole where `diff` changes its `use`: the old component's arguments mean nothing to the new.
    """
    if isinstance(diff, Replacement):
        return dict(diff)
    if isinstance(diff, str) and isinstance(base, dict) and "use" in base:
        diff = {"use": diff}
    if isinstance(base, str) and isinstance(diff, dict):
        base = {"use": base}
    if not isinstance(base, dict) or not isinstance(diff, dict):
        return diff
    if "use" in diff and "use" in base and diff["use"] != base["use"]:
        return diff
    return {**base, **{key: merge(base.get(key), value) for key, value in diff.items()}}


def parse_override(text: str, origins: dict[KeyPath, Origin]) -> dict[str, Any]:
    """`a.b=c` as {"a": {"b": c}}; the value is read as YAML. Records where it came from in `origins`."""
    key, equals, value_text = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(
            f"{option('set', text)}: write it as section.key=value, for example {option('set', 'train.tokens=2M')}"
        )
    value, _ = parse_yaml(value_text, f"{option('set', text)}")
    value = absolute_paths(None if not value_text.strip() else value, Path.cwd())
    if path[0] == "base":
        raise ConfigError(
            f"{option('set', text)}: `base` is for files; name that file as the config instead", key="base"
        )
    for known in [known for known in origins if known[: len(path)] == path]:
        del origins[known]  # what was written there before no longer speaks for the value
    origins[path] = Origin(f"{option('set', text)}")
    for part in reversed(path):
        value = {part: value}
    result: dict[str, Any] = value
    return result


def _validate(values: dict[str, Any], origins: Mapping[KeyPath, Origin]) -> RunConfig:
    return validated(RunConfig, values, origins, also=("base",))


def difference(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Where two resolved configs differ, as (dotted key, value in a, value in b); absent values are None.

    A slot whose `use` differs is one difference: its arguments cannot be compared one by one.
    """
    if prefix and "use" in a and "use" in b and a["use"] != b["use"]:
        return [(prefix.rstrip("."), dict(a), dict(b))]
    found: list[tuple[str, Any, Any]] = []
    for key in [*a, *(key for key in b if key not in a)]:
        left, right = a.get(key), b.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += difference(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append((f"{prefix}{key}", left, right))
    return found


def json_schema() -> dict[str, Any]:
    """JSON Schema of a config file of one run (`gptlab.config.stages` adds `stages`), components included."""
    schema = RunConfig.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for kind in SLOTS:
        choices: list[dict[str, Any]] = [
            {"type": "string", "anyOf": [{"enum": component_names(kind)}, {"pattern": ":"}]},
            *(_component_schema(kind, name) for name in component_names(kind)),
            {
                "type": "object",
                "required": ["use"],
                "properties": {"use": {"type": "string", "pattern": ":"}},
            },
            {"type": "null"},
        ]
        definitions[f"slot:{kind}"] = {"title": f"slot {kind}", "anyOf": choices}
    _link_slots(schema)
    schema["properties"]["base"] = {
        "type": "string",
        "description": "a config that this one is a diff against",
    }
    definitions["Seed"] = {"anyOf": [{"type": "integer"}, definitions["Seed"]]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "gptlab config"}


def _link_slots(value: Any) -> None:
    """Turn the fields' {"slot": KIND} into references; pydantic cannot be given a definition it did not make."""
    if isinstance(value, dict):
        if isinstance(kind := value.pop("slot", None), str):
            value.pop("default", None)
            value["$ref"] = f"#/$defs/slot:{kind}"
        for item in value.values():
            _link_slots(item)


def _component_schema(kind: str, name: str) -> dict[str, Any]:
    found = signature(kind, name)
    schema = found.schema.model_json_schema()
    properties = schema.get("properties", {})
    for parameter, nested in found.nested.items():
        properties[parameter] = {"$ref": f"#/$defs/slot:{nested}"}
    # `use` is not required: every slot of a run has a default component
    return {
        "type": "object",
        "title": name,
        "additionalProperties": False,
        "properties": {"use": {"const": name}, **properties},
    }
