"""The command line, put together: each command is a function in a file of its group."""

import io
import sys
import warnings
from typing import Any

import typer

from ..errors import TilelliError
from . import runpod
from .chat import chat
from .cost import cost
from .data import data
from .eval import eval_
from .generate import PromptCommand, generate, score
from .models import info, pack, push
from .sft import sft
from .train import train

app = typer.Typer(
    add_completion=False,  # two options fewer in the help
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # main() says what went wrong, in two lines
    rich_markup_mode="markdown",
    help="Tilelli, a byte-level language model you can rebuild from zero.\n\n"
    'Begin with `tilelli generate "Once upon a time"`, '
    "then train your own with `tilelli train`.",
)
# `tilelli --help` lists them in this order
for command in (data, train, sft, chat, generate, score, pack, info, push, cost):
    app.command(cls=PromptCommand if command is generate else None)(command)
app.command("eval")(eval_)
app.add_typer(runpod.app, name="runpod")


def as_one_line(message: Warning | str, *place: Any, **more: Any) -> str:
    """Writes a warning for a reader, who does not need the line it came from."""
    return f"warning: {message}\n"


def main() -> None:
    """Runs the app. An error of this package becomes two lines and exit code 1, never a
    traceback.
    """
    warnings.formatwarning = as_one_line
    for stream in (sys.stdout, sys.stderr):
        # a terminal that cannot show a character shows ? in its place
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # what is typed may be no text: `tilelli chat` says what it makes of it
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    try:
        app()
    except TilelliError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None
