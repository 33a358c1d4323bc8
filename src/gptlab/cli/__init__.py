"""The command line: a thin face over the functions of the package, one file a group of commands.

Commands import what they need when they run, so that `gptlab --help` answers at once.
"""

from __future__ import annotations

import sys

import typer

from gptlab.cli import experiments, extending, reporting, run, search, weights
from gptlab.cli.config import app as config_app
from gptlab.cli.data import app as data_app
from gptlab.cli.mup import app as mup_app
from gptlab.cli.planning import plan
from gptlab.cli.tokenizer import app as tokenizer_app

app = typer.Typer(
    name="gptlab",
    help="A laboratory for GPT pre-training research on a small budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(tokenizer_app, name="tokenizer", help="Train, import, inspect and grow tokenizers.")
app.add_typer(data_app, name="data", help="Turn text into token shards, and check them.")
app.add_typer(config_app, name="config", help="Show, compare and describe configs.")
app.add_typer(mup_app, name="mup", help="Maximal update parametrization.")
app.add_typer(extending.new_app, name="new", help="Begin something of your own.")
app.command()(experiments.run)
app.command()(search.noise)
app.command("lr-find")(search.lr_find)
app.command()(search.sweep)
app.command()(search.ladder)
app.command()(reporting.report)
app.command()(reporting.compare)
app.command()(reporting.paper)
app.command("list")(reporting.list_)
app.command()(run.train)
app.command("eval")(run.evaluate)
app.command()(run.sample)
app.command()(run.trace)
app.command()(plan)
app.command("import")(weights.import_)
app.command()(weights.export)
app.command()(weights.soup)
app.command()(extending.check)


def main() -> None:
    """Entry point of `gptlab`: run the command; a mistake is one line on standard error and its exit code."""
    from gptlab.errors import GptlabError

    try:
        app()
    except GptlabError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
