"""What a run is: a typed schema, YAML with inheritance, slots, and the hash that identifies a run."""

from gptlab.config.identity import component_files, config_hash, hashed_values, run_name
from gptlab.config.load import config_from, difference, json_schema, load_config
from gptlab.config.numbers import format_count, parse_number
from gptlab.config.schema import RunConfig, Seed
from gptlab.config.slots import SLOTS, Slot, build, menu, validate_slot
from gptlab.config.yamlfile import dump_yaml

__all__ = [
    "SLOTS",
    "RunConfig",
    "Seed",
    "Slot",
    "build",
    "component_files",
    "config_from",
    "config_hash",
    "difference",
    "dump_yaml",
    "format_count",
    "hashed_values",
    "json_schema",
    "load_config",
    "menu",
    "parse_number",
    "run_name",
    "validate_slot",
]
