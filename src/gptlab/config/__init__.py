"""What a run is: a typed schema, YAML with inheritance, slots, and the hash that identifies a run."""

from gptlab.config.building import build
from gptlab.config.identity import component_files, config_hash, hashed_values, run_name
from gptlab.config.load import config_from, difference, load_config
from gptlab.config.numbers import format_count, parse_number, require_range
from gptlab.config.preset import find_config, presets
from gptlab.config.schema import Parallel, RunConfig, Seed
from gptlab.config.signatures import SLOTS, component_names
from gptlab.config.slots import Slot, validate_slot
from gptlab.config.stages import Stage, has_stages, json_schema, load_stage, load_stages
from gptlab.config.start import pin, starting_run, weights_digest
from gptlab.config.yamlfile import dump_yaml

__all__ = [
    "SLOTS",
    "Parallel",
    "RunConfig",
    "Seed",
    "Slot",
    "Stage",
    "build",
    "component_files",
    "component_names",
    "config_from",
    "config_hash",
    "difference",
    "dump_yaml",
    "find_config",
    "format_count",
    "has_stages",
    "hashed_values",
    "json_schema",
    "load_config",
    "load_stage",
    "load_stages",
    "parse_number",
    "pin",
    "presets",
    "require_range",
    "run_name",
    "starting_run",
    "validate_slot",
    "weights_digest",
]
