"""`gptlab config …`."""

from __future__ import annotations

import json

import typer

from gptlab.cli.options import Config, Overrides
from gptlab.console import output

app = typer.Typer(no_args_is_help=True, help="Show, compare and describe configs.")


@app.command()
def show(config: Config, overrides: Overrides = []) -> None:  # noqa: B006 - typer copies it
    """Print CONFIG with its base chain followed and every default written out, each of its stages too."""
    from gptlab.config import dump_yaml, has_stages, load_config, load_stages

    if has_stages(config):
        stages = load_stages(config, overrides)
        name = stages[0].config.name.removesuffix(f"-{stages[0].name}")
        print(dump_yaml({"name": name, "stages": [stage.plain() for stage in stages]}), end="")
    else:
        print(dump_yaml(load_config(config, overrides).plain()), end="")


@app.command()
def diff(a: Config, b: Config) -> None:
    """Print what differs between two configs, defaults included; nothing when they mean the same run."""
    from gptlab.config import difference, load_config

    for key, left, right in difference(load_config(a).plain(), load_config(b).plain()):
        output().print(f"{key}: {_short(left)} → {_short(right)}", markup=False)


@app.command()
def schema() -> None:
    """Print JSON Schema for config files, so that an editor can complete and check them."""
    from gptlab.config import json_schema

    print(json.dumps(json_schema(), indent=2))


def _short(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
