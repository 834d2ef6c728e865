"""All commands together; errors that users can cause are printed without a traceback."""

import logging
import os
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from tensorpress import __version__
from tensorpress.cli.output import print_error, print_json, print_line
from tensorpress.codec.read_budget import MAX_BYTES
from tensorpress.errors import BudgetMetError, InvalidArgumentError, TensorPressError
from tensorpress.utils.progress import SHOW_PROGRESS

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells."""

COMMANDS = {
    "compress": ("compress:compress_command", "Compress a model to a budget, and rate the result."),
    "plan": ("plan:plan_command", "Show what would be pressed, and what it saves."),
    "press": ("press:press_command", "Press a model by a plan into a folder of safetensors."),
    "report": (
        "report:report_command",
        "Write a page that compares a pressed model with the dense one.",
    ),
    "eval": ("eval:eval_command", "Measure the costs of a model, and its error on data."),
    "encode": ("encode:encode_command", "Round and entropy code a model or a file to a budget."),
    "decode": ("encode:decode_command", "Write the tensors of a .tpz file as safetensors."),
    "inspect": ("inspect:inspect_command", "Show the contents of a file, a folder or a model."),
    "export": ("export:export_command", "Write a model as ONNX, a dense folder or an adapter."),
    "run": ("run:run_command", "Run a recipe: train, press, quantize, save, report."),
    "sweep": ("sweep:sweep_command", "Run variants of a recipe, and compare their files."),
    "demo": ("run:demo", "Press LeNet-5 on 1,797 digits in about two minutes."),
    "list": ("list:list_command", "List schemes, rules, networks, datasets and recipes."),
}
"""The module and function of every command, and its line in the help."""

RESUMABLE = ("run", "sweep", "demo")
"""Commands that can be continued after an interruption."""


class LazyCommand(TyperCommand):
    """A command whose module is imported when it is called, so that the help is fast."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:
        """Return the context of the command in its module, with its parameters."""
        place, _ = COMMANDS[self.name or ""]
        module, name = place.split(":")
        if "" in args:
            raise InvalidArgumentError(
                "an argument is empty, perhaps from a shell variable that is not set"
            )
        single = typer.Typer(add_completion=False)
        function = getattr(import_module(f"tensorpress.cli.{module}"), name)
        single.command(self.name)(_explain_interrupt(function, self.name in RESUMABLE))
        return typer.main.get_command(single).make_context(info_name, args, *more, **extra)


def _explain_interrupt(function: Callable[..., None], resumable: bool) -> Callable[..., None]:
    """Return a command that says after Ctrl-C how to continue."""

    @wraps(function)
    def command(*arguments: Any, **options: Any) -> None:
        try:
            function(*arguments, **options)
        except KeyboardInterrupt as error:
            how = str(error) or ("repeat the command to continue" if resumable else "")
            print_error(f"interrupted: {how}" if how else "interrupted")
            sys.exit(INTERRUPTED)

    return command


app = typer.Typer(
    help="Press neural networks by tensor decomposition into the smallest files.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _name, (_, _line) in COMMANDS.items():
    app.command(_name, cls=LazyCommand, help=_line)(lambda: None)


def print_version(show: bool) -> None:
    """Print the version and stop, if the option is set."""
    if show:
        print_line(f"tensorpress {__version__}")
        raise typer.Exit


@app.callback()
def set_up(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results and errors, no progress.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print every step, and tracebacks of errors.")
    ] = False,
    max_bytes: Annotated[
        int | None,
        typer.Option(min=0, help="Memory that reading a .tpz file may take, if you trust it."),
    ] = None,
) -> None:
    """Press neural networks by tensor decomposition into the smallest files."""
    if max_bytes is not None:
        os.environ[MAX_BYTES] = str(max_bytes)
    if quiet and verbose:
        raise typer.BadParameter("use --quiet or --verbose, not both")
    bars = Console().is_terminal and not quiet
    os.environ[SHOW_PROGRESS] = "1" if bars else "0"
    if not bars:
        os.environ.setdefault("TQDM_DISABLE", "1")  # the progress bars of transformers
    if verbose:
        logging.getLogger("tensorpress").setLevel(logging.DEBUG)
    elif not (bars or quiet):  # otherwise a bar shows the progress
        logging.getLogger("tensorpress").setLevel(logging.INFO)


def main() -> None:
    """Run the command line."""
    logging.basicConfig(format="%(message)s")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of files may be in no encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except BudgetMetError as error:
        if "--json" in sys.argv:
            print_json({"nothing_to_do": str(error)})
        else:
            print_line(f"nothing to do: {error}")
    except TensorPressError as error:
        if logging.getLogger("tensorpress").isEnabledFor(logging.DEBUG):
            raise
        print_error(str(error))
        sys.exit(1)
    except OSError as error:  # of the operating system on a path that no reader has explained
        if logging.getLogger("tensorpress").isEnabledFor(logging.DEBUG) or not error.filename:
            raise
        print_error(f"{error.filename}: {error.strerror}")
        sys.exit(1)
