"""What makes two runs the same run: a hash over everything that changes results, and nothing else.

Left out are the name, the seed (it is spelled out in the folder's name), the sections `system`, `parallel`,
`checkpoint` and `log`, how often validation happens, and every path; what a path leads to (the tokens, the source of a
component and of what it imports of its user's own) takes its place, so that moving files changes nothing and editing
them changes the hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gptlab.config.schema import RunConfig
from gptlab.config.signatures import own_sources
from gptlab.config.slots import Slot, used_files, used_modules
from gptlab.config.start import starting_run

UNHASHED = (
    "name",
    "seed",
    "system",
    "parallel",
    "checkpoint",
    "log",
    "eval.every",
    "eval.at_start",
    "eval.also",
    "eval.tasks",
    "eval.limit",
    "data.path",
    "data.sources",
    "data.tokenizer",
    "data.epochs",
)
"""Dotted keys outside the hash. `data.sources` and `data.tokenizer` enter as fingerprints of what they lead to."""

ADDED: dict[str, tuple[Any, ...]] = {
    "data.stream": (None, {"use": "BatchStream"}),
    "eval.sequence_length": (None,),
    "eval.target": (None,),
    "train.growth": (None, {"use": "Fixed", "batches": 1}),
}
"""Keys that came after runs had been hashed, and what means the same as before they came: that is left out."""

ADDED_ARGUMENTS: dict[str, dict[str, Any]] = {
    "GPT": {"float8_head": False},
    "Attention": {"without_rotation": []},
    "RoPE": {"window_theta": None},
    "AdamW": {"perplexity_power": 0.0},
    "Muon": {"momentum_warmup": 0, "momentum_start": 0.85, "perplexity_power": 0.0},
    "Cosine": {"cycles": 1, "growth": 1.0},
    "Linear": {"cycles": 1, "growth": 1.0},
}
"""The same of arguments of components, wherever a config has one: by component, the argument and that value."""


def component_files(config: RunConfig) -> dict[str, Path]:
    """Files of user components that the config names, by the path it names them with."""
    return _used(config, used_files)


def _used(config: RunConfig, find: Callable[[Slot], dict[str, Path]]) -> dict[str, Path]:
    """What `find` finds in the slots of a config."""
    slots = [config.model, config.loss, config.optimizer, config.schedule, config.train.growth]
    slots += [config.data.mix, config.data.stream]
    return {name: path for slot in slots if isinstance(slot, Slot) for name, path in find(slot).items()}


def hashed_values(config: RunConfig, data: Mapping[str, str]) -> dict[str, Any]:
    """The nested dictionary that is hashed. `data`: fingerprint of each data set, by source name."""
    values = config.plain()
    for dotted in (*UNHASHED, *ADDED):
        *parents, last = dotted.split(".")
        section = values
        for parent in parents:
            section = section[parent]
        if dotted in UNHASHED or section.get(last) in ADDED[dotted]:
            section.pop(last, None)
    values["data"]["fingerprints"] = dict(sorted(data.items()))
    if (start := starting_run(values["model"].get("init_from"))) is not None:
        values["model"]["init_from"] = start[1]
    sources = component_files(config) | _used(config, used_modules)
    digests = {name: _digest(path) for name, path in sources.items()}
    replaced: dict[str, Any] = _replace_files(_without_added(values), digests)
    return replaced


def _digest(file: Path) -> str:
    """16 hex digits of SHA-256 of a component's source, and of what it imports of its user's own."""
    content = file.read_bytes()
    if others := own_sources(file):
        content += b"".join(sorted(hashlib.sha256(other.read_bytes()).digest() for other in others))
    return hashlib.sha256(content).hexdigest()[:16]


def _without_added(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    added = ADDED_ARGUMENTS.get(str(value.get("use")), {})
    return {key: _without_added(item) for key, item in value.items() if key not in added or item != added[key]}


def _replace_files(value: Any, digests: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replace_files(item, digests) for key, item in value.items()}
    if isinstance(value, str):
        file, colon, name = value.rpartition(":")
        if colon and file in digests:
            return f"{digests[file]}:{name}"
    return value


def config_hash(config: RunConfig, data: Mapping[str, str]) -> str:
    """Eight hex digits of SHA-256 over `hashed_values`."""
    text = json.dumps(hashed_values(config, data), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_name(config: RunConfig, data: Mapping[str, str]) -> str:
    """The name of the run's folder: NAME-HASH-seedN."""
    return f"{config.name}-{config_hash(config, data)}-seed{config.seed}"
