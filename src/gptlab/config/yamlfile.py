"""YAML as configs need it: safe, with the numbers people write, and with the line each key stands on.

Scalars resolve as YAML 1.2's core schema says, not as PyYAML's 1.1: `6e-4` is a number, and `no`, `on` and
`12:30` are text. A key given twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gptlab.config.preset import missing
from gptlab.errors import ConfigError

KeyPath = tuple[str, ...]
_MAX_DEPTH, _MAX_VALUES = 50, 100_000  # levels and values of one file; no config comes near


@dataclass(frozen=True)
class Origin:
    """Where a value was written: a file and a line (counted from 1), or the command line (line 0)."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


def find_origin(origins: Mapping[KeyPath, Origin], path: KeyPath) -> Origin | None:
    """Where the value at `path` was written: at itself, else at the nearest key above it, else at one inside it."""
    for length in range(len(path), 0, -1):
        if path[:length] in origins:
            return origins[path[:length]]
    return next((origin for key, origin in origins.items() if path and key[: len(path)] == path), None)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the YAML 1.2 core schema."""


_Loader.yaml_implicit_resolvers = {}
_FLOAT = r"[-+]?(?:(?:\d[\d_]*)?\.\d+|\d[\d_]*\.?)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
for _tag, _pattern, _first in [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?\d[\d_]*", list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
]:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})$"), _first)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(str(node.value).replace("_", ""))  # decimal always: 0123 is 123, not octal


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _record_origins(node: yaml.Node, file: str, path: KeyPath, origins: dict[KeyPath, Origin]) -> None:
    """Record the line of every key below `node`. Raises ConfigError for a key that is given twice or is no text."""
    origins[path] = origins.get(path, Origin(file, node.start_mark.line + 1))
    if len(path) > _MAX_DEPTH or len(origins) > _MAX_VALUES:  # an alias in its own anchor, or of aliases
        raise ConfigError(
            f"{file}:{node.start_mark.line + 1}: aliases that contain themselves or each other; write the values out"
        )
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _record_origins(item, file, (*path, str(index)), origins)
        return
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key_node, value_node in node.value:
        line, key = key_node.start_mark.line + 1, key_node.value
        if key_node.tag != "tag:yaml.org,2002:str":
            found = repr(key) if isinstance(key_node, yaml.ScalarNode) else key_node.tag.rpartition(":")[2]
            raise ConfigError(f"{file}:{line}: a key must be text, found {found}; put it in quotes, or remove it")
        if key in seen:
            raise ConfigError(
                f"{file}:{line}: key {key!r} is given twice; keep one of them", key=".".join((*path, key))
            )
        seen.add(key)
        origins[(*path, key)] = Origin(file, line)
        _record_origins(value_node, file, (*path, key), origins)


def parse_yaml(text: str, file: str) -> tuple[Any, dict[KeyPath, Origin]]:
    """The value in `text` and the origin of every key. Raises ConfigError on anything that is not plain YAML."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return {}, {}
            origins: dict[KeyPath, Origin] = {}
            _record_origins(node, file, (), origins)
            return loader.construct_document(node), origins
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{file}:{line}: not valid YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise ConfigError(f"{file}: nested too deep for a config; write it flatter") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, Origin]]:
    """A YAML file that holds a mapping. Raises ConfigError where it is missing, unreadable or something else."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no config file at {path}; {missing(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; name a YAML file, or a run folder that holds config.yaml") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no YAML file: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    value, origins = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError(f"{path}:1: a config is a mapping of `key: value` lines, found {type(value).__name__}")
    return value, origins


def dump_yaml(value: Any) -> str:
    """YAML that `parse_yaml` reads back as `value`; keys keep their order."""

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def represent_float(dumper: yaml.SafeDumper, number: float) -> yaml.ScalarNode:
        text = repr(number).replace("inf", ".inf").replace("nan", ".nan")
        if "e" in text and "." not in text:
            text = text.replace("e", ".0e")  # 1e-10 is text to YAML 1.1 readers, 1.0e-10 is not
        return dumper.represent_scalar("tag:yaml.org,2002:float", text)

    def represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        # PyYAML quotes what YAML 1.1 would not read as text; 1.2 has a few more numbers (1e5).
        tag = _Loader("").resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        is_text = tag == "tag:yaml.org,2002:str"
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_text else "'")

    Dumper.add_representer(float, represent_float)
    Dumper.add_representer(str, represent_str)
    return str(
        yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=110)
    )
