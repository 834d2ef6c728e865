"""The commands run and demo."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tensorpress.cli.options import Json
from tensorpress.cli.output import print_json, print_line
from tensorpress.report import headline_table, layer_table
from tensorpress.runs.library import find_in_library

if TYPE_CHECKING:
    from tensorpress.runs.run import RunResult

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
Seed = Annotated[int, typer.Option(help="Seed of all random numbers.", min=0, max=2**32 - 1)]

DEMO, RUNS = Path("demo"), Path("runs")


def run_command(
    recipe: Annotated[
        str,
        typer.Argument(help="A recipe in YAML, or the name of one from tensorpress list."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the results; by default runs/NAME."),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Run a recipe: train, press, quantize, save, test the file, report.

    After an interruption, repeat the command to continue.

    Example: tensorpress run lenet5-ada --out runs/lenet5
    """
    from tensorpress.runs.recipe import read_recipe
    from tensorpress.runs.run import run

    path = find_in_library("recipe", recipe)
    _print_result(run(read_recipe(path), out or RUNS / path.stem, seed=seed), as_json)


def demo(out: Out = DEMO, seed: Seed = 0, as_json: Json = False) -> None:
    """Press LeNet-5 on the digits from UCI, in about two minutes; nothing is downloaded.

    Example: tensorpress demo --out demo
    """
    from tensorpress.runs.recipe import parse_recipe
    from tensorpress.runs.run import run

    text = resources.files("tensorpress.runs").joinpath("demo.yaml").read_text(encoding="utf-8")
    _print_result(run(parse_recipe(text), out, seed=seed), as_json)


def _print_result(result: RunResult, as_json: bool) -> None:
    if as_json:
        print_json(result.metrics)
        return
    console = Console(emoji=False)
    console.print(layer_table(result.content.layers))
    console.print(headline_table(result.metrics))
    print_line(f"file    {result.folder / 'model.tpz'}")
    print_line(f"report  {(result.folder / 'report.html').resolve().as_uri()}")
