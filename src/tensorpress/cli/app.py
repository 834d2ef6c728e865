"""The commands, put together; errors a user can cause are printed without a traceback."""

import logging
import os
import sys

import typer
from rich.console import Console

from tensorpress.cli.encode import decode_command, encode_command
from tensorpress.cli.eval import eval_command
from tensorpress.cli.export import export_command
from tensorpress.cli.inspect import inspect_command
from tensorpress.cli.list import list_command
from tensorpress.cli.output import print_error
from tensorpress.cli.plan import plan_command
from tensorpress.cli.press import press_command
from tensorpress.cli.run import demo, run_command
from tensorpress.cli.sweep import sweep_command
from tensorpress.errors import TensorPressError

app = typer.Typer(
    help="Press neural networks by tensor decomposition into the smallest files.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command("plan")(plan_command)
app.command("press")(press_command)
app.command("eval")(eval_command)
app.command("encode")(encode_command)
app.command("decode")(decode_command)
app.command("inspect")(inspect_command)
app.command("export")(export_command)
app.command("run")(run_command)
app.command("sweep")(sweep_command)
app.command("demo")(demo)
app.command("list")(list_command)


def main() -> None:
    """Run the command line."""
    logging.basicConfig(format="%(message)s")
    if not Console().is_terminal:  # on one, a bar shows the progress that these lines tell
        logging.getLogger("tensorpress").setLevel(logging.INFO)
        os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of transformers
    try:
        app()
    except TensorPressError as error:
        print_error(str(error))
        sys.exit(1)
