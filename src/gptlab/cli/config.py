"""`gptlab config …`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptlab.config import RunConfig

app = typer.Typer(no_args_is_help=True)

Source = Annotated[str, typer.Argument(help="a YAML file, or a run folder")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="change a value; repeatable")]
OneStage = Annotated[str | None, typer.Option("--stage", help="of a config of stages: which; by default the first")]


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


def load_one(source: str, overrides: Sequence[str], stage: str | None) -> RunConfig:
    """The config of one run; of stages that of `stage`, or of the first, which is said."""
    from gptlab.config import has_stages, load_stage
    from gptlab.console import say

    loaded = load_stage(source, overrides, stage)
    if stage is None and has_stages(source):
        say(f"taking the first stage, {loaded.name} (--stage names another)")
    return loaded


def _short(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
