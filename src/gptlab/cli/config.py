"""`gptlab config …`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

Source = Annotated[str, typer.Argument(help="a YAML file, or a run folder")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="change a value; repeatable")]


@app.command()
def show(config: Source, overrides: Overrides = []) -> None:  # noqa: B006 - typer copies it
    """Print CONFIG with its base chain followed and every default written out, each of its stages too."""
    from gptlab.config import dump_yaml, has_stages, load_config, load_stages

    if has_stages(config):
        stages = load_stages(config, overrides)
        name = stages[0].config.name.removesuffix(f"-{stages[0].name}")
        print(dump_yaml({"name": name, "stages": [stage.plain() for stage in stages]}), end="")
    else:
        print(dump_yaml(load_config(config, overrides).plain()), end="")


@app.command()
def diff(a: Source, b: Source) -> None:
    """Print what differs between two configs, defaults included; nothing when they mean the same run."""
    from gptlab.config import difference, load_config
    from gptlab.console import output

    for key, left, right in difference(load_config(a).plain(), load_config(b).plain()):
        output().print(f"{key}: {_short(left)} → {_short(right)}", markup=False)


@app.command()
def schema() -> None:
    """Print JSON Schema for config files, so that an editor can complete and check them."""
    from gptlab.config import json_schema

    print(json.dumps(json_schema(), indent=2))


def _short(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
