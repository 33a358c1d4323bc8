"""The command line: a thin face over the functions of the package, one file a command or a group of them.

Commands import what they need when they run, so that `gptlab --help` answers at once.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gptlab.cli.chat import chat
from gptlab.cli.check import check
from gptlab.cli.compare import compare
from gptlab.cli.config import app as config_app
from gptlab.cli.data import app as data_app
from gptlab.cli.eval import evaluate
from gptlab.cli.experiment import app as experiment_app
from gptlab.cli.export import export
from gptlab.cli.import_ import import_
from gptlab.cli.judge import judge
from gptlab.cli.ladder import ladder
from gptlab.cli.list import list_
from gptlab.cli.lr_find import lr_find
from gptlab.cli.mup import app as mup_app
from gptlab.cli.new import app as new_app
from gptlab.cli.noise import noise
from gptlab.cli.options import NothingEmpty
from gptlab.cli.paper import paper
from gptlab.cli.plan import plan
from gptlab.cli.report import report
from gptlab.cli.run import run
from gptlab.cli.sample import sample
from gptlab.cli.serve import serve
from gptlab.cli.soup import soup
from gptlab.cli.submit import submit
from gptlab.cli.sweep import sweep
from gptlab.cli.tokenizer import app as tokenizer_app
from gptlab.cli.trace import trace
from gptlab.cli.train import train
from gptlab.console import output, starting
from gptlab.errors import GptlabError, speaking_of_options
from gptlab.files import machine_error
from gptlab.systems.signals import Terminated, terminable
from gptlab.version import __version__

COMMANDS: dict[str, dict[str, typer.Typer | Callable[..., None]]] = {
    "Prepare": {"tokenizer": tokenizer_app, "data": data_app, "config": config_app},
    "Build": {"new": new_app, "check": check, "trace": trace},
    "Train": {
        "plan": plan,
        "train": train,
        "submit": submit,
        "sample": sample,
        "chat": chat,
        "serve": serve,
        "soup": soup,
    },
    "Tune": {"lr-find": lr_find, "sweep": sweep, "mup": mup_app, "ladder": ladder},
    "Judge": {
        "experiment": experiment_app,
        "noise": noise,
        "run": run,
        "eval": evaluate,
        "compare": compare,
        "judge": judge,
        "list": list_,
    },
    "Share": {"report": report, "paper": paper, "import": import_, "export": export},
}
"""Every command, in the order of the work that they are for: the panels of `gptlab --help`."""


class _InOrder(TyperGroup):
    def list_commands(self, ctx: typer.Context) -> Any:
        """As `COMMANDS` has them: typer would put groups last."""
        return [name for commands in COMMANDS.values() for name in commands]


app = typer.Typer(
    name="gptlab",
    cls=_InOrder,
    help="A laboratory for GPT pre-training research on a small budget.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)

_JOURNEYS = """gptlab, a laboratory for GPT pre-training research on a small budget.

See it work             gptlab train demo --prepare
                        gptlab sample runs/demo-* "def read_file(path):"
Your own text           gptlab tokenizer train --input 'text/*.txt' --vocab-size 4096 --name mine
                        gptlab data prepare --input 'text/*.txt' --validation-fraction 0.1 \\
                            --tokenizer mine --out data/mine
                        gptlab train books-xs --set data.path=data/mine
What there is           gptlab config list, gptlab data presets, gptlab experiment list
What it will cost       gptlab plan gpt2 --gpu "RTX 4090"
Change one part         gptlab new component attention my-attention
Is it better?           gptlab new my-idea --baseline demo
                        gptlab run experiments/my-idea
Weights of others       gptlab import openai-community/gpt2 --name gpt2

All commands: gptlab --help. Of one: gptlab train --help."""


@app.callback()
def _begin(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        output().print(f"gptlab {__version__}", highlight=False)
        raise typer.Exit
    if context.invoked_subcommand is None:
        output().print(_JOURNEYS, markup=False)


for _panel, _commands in COMMANDS.items():
    for _name, _command in _commands.items():
        if isinstance(_command, typer.Typer):
            for _one in _command.registered_commands:
                _one.cls = NothingEmpty
            app.add_typer(_command, name=_name, rich_help_panel=_panel)
        else:
            app.command(_name, cls=NothingEmpty, rich_help_panel=_panel)(_command)


def main() -> None:
    """Entry point of `gptlab`: run the command; a mistake is one line on standard error and its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character shows its number
    # A notebook's `!gptlab` inherits a backend that may not be installed here; pictures are files.
    os.environ["MPLBACKEND"] = "agg"
    try:
        name = f"gptlab {sys.argv[1]}" if len(sys.argv) > 1 else "gptlab"
        with terminable(), speaking_of_options(), starting(name):
            app()
    except GptlabError as error:
        _end(str(error), error.exit_code)
    except Terminated as told:
        sys.exit(128 + told.number)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `gptlab list | head`: who reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except OSError as error:  # a folder without rights, a full disk, standard output that is closed
        place = f"{error.filename}: " if error.filename else ""
        _end(machine_error(error) or f"{place}{error.strerror or error}; look at the disk", GptlabError.exit_code)


def _end(message: str, code: int) -> None:
    """An error is one line, whatever is in the names that it quotes."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    with contextlib.suppress(OSError, ValueError):
        print(f"error: {shown}", file=sys.stderr)
    sys.exit(code)
