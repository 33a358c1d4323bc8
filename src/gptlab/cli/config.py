"""`gptlab config …`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from gptlab.cli.options import GPT2_VOCABULARY, Config, Overrides
from gptlab.console import output, say
from gptlab.errors import ConfigError
from gptlab.files import check_place, write_atomic

app = typer.Typer(no_args_is_help=True, help="List, copy, show, compare and describe configs.")


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


_CARD = "H100 SXM"  # that prices are for


@app.command("list")
def list_() -> None:
    """The configs that come with gptlab, by name, and what training each takes."""
    from gptlab.cli.tables import add_row, new_table, show
    from gptlab.config import format_count, load_config, presets
    from gptlab.config.preset import description
    from gptlab.config.yamlfile import read_yaml
    from gptlab.console import track
    from gptlab.hardware.gpus import find_gpu, read_gpus
    from gptlab.model import build_model
    from gptlab.planning.plan import dollars_of_products

    rows, card = list[tuple[str, ...]](), find_gpu(_CARD, read_gpus())
    for name, file in track(presets().items(), "building models", total=len(presets()), unit="configs"):
        what = description(name)
        if (start := read_yaml(file)[0]["model"].get("init_from")) is not None:
            rows.append((name, "", "", "", start, what))
            continue
        config = load_config(name)
        model = build_model(config, GPT2_VOCABULARY, device="meta")
        count = model.parameter_count(embeddings=False)
        flops = model.flops_per_token(config.train.sequence_length) * config.train.tokens
        price = dollars_of_products(flops, card)
        data = config.data.path or "to name"
        rows.append((name, format_count(count), format_count(config.train.tokens), _rounded(price), data, what))
    table = new_table(("config", "parameters", "tokens", f"on an {_CARD}", "data", "what it is"))
    for column in table.columns[-2:]:
        column.justify = "left"
    for row in rows:
        add_row(table, row)
    show(table)
    say(
        "parameters are those beside embeddings; prices are of matrix products alone, with GPT-2's vocabulary; "
        "`gptlab plan NAME` knows more"
    )


def _rounded(dollars: float) -> str:
    from gptlab.planning.formatting import format_dollars

    return format_dollars(dollars) if dollars >= 0.01 else "under $0.01"


@app.command()
def copy(
    name: Annotated[str, typer.Argument(help="a name of `gptlab config list`")],
    out: Annotated[Path | None, typer.Option(help="the file to write; by default NAME.yaml, here")] = None,
) -> None:
    """Copy a config that comes with gptlab, to change it. Shorter is a file of `base: gptlab:NAME` and what differs."""
    from gptlab.config import find_config
    from gptlab.config.preset import PREFIX

    source = find_config(f"{PREFIX}{name.removeprefix(PREFIX)}")
    target = out or Path(source.name)
    check_place(target, "--out")
    if target.exists():
        raise ConfigError(f"{target} exists already; name another file with --out")
    text = source.read_text(encoding="utf-8")
    write_atomic(target, re.sub(r"(?m)^base: ([\w-]+)\.yaml$", rf"base: {PREFIX}\1", text))
    say(f"wrote {target}\nnext: gptlab train {target}")


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
