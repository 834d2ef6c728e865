"""The command line: parses, calls, prints."""

import json
import logging
import sys
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tensorpress.codec.file import load
from tensorpress.codec.inspect import Inspection, inspect
from tensorpress.data import DATASETS, batches
from tensorpress.errors import ModelMismatchError, TensorPressError
from tensorpress.planning import SCHEMES
from tensorpress.recipe import parse_recipe, read_recipe
from tensorpress.report import headline_table, layer_table
from tensorpress.running import EVALUATION_BATCH, RunResult, run
from tensorpress.schemes.dimensions import by
from tensorpress.sources import load_splits
from tensorpress.train import evaluate
from tensorpress.zoo import NETWORKS, Network

app = typer.Typer(
    help="Press neural networks by tensor decomposition into the smallest files.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
Seed = Annotated[int, typer.Option(help="Of every random number.", min=0, max=2**32 - 1)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
File = Annotated[Path, typer.Argument(help="A .tpz file.")]
Root = Annotated[
    Path | None,
    typer.Option("--root", help="Folder of the data sets; TENSORPRESS_DATA if not given."),
]


@app.command("run")
def run_command(
    recipe: Annotated[Path, typer.Argument(help="A recipe, in YAML.")],
    out: Out,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Carry out a recipe: train, press, quantize, save, test the file, report.

    An interrupted run goes on where it stopped when it is started again with the same folder.
    """
    _show(run(read_recipe(recipe), out, seed=seed), as_json)


@app.command()
def demo(out: Out = Path("demo"), seed: Seed = 0, as_json: Json = False) -> None:
    """Press LeNet-5 on scikit-learn's digits, in about two minutes; nothing is downloaded."""
    text = resources.files("tensorpress").joinpath("demo.yaml").read_text(encoding="utf-8")
    _show(run(parse_recipe(text), out, seed=seed), as_json)


@app.command("eval")
def eval_command(
    file: File,
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set; if not given MNIST for grey and CIFAR-10 for colour images, "
            "moving-digits for clips."
        ),
    ] = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Decode a file and measure its error on the test images of a data set."""
    network = inspect(file).network
    if network is None:
        raise ModelMismatchError(f"{file} holds a model that is not in the zoo; test it in Python")
    net = NETWORKS[network]
    name = data or _usual_data(net)
    test = load_splits(net, name, root).test
    loader = batches(test, net.preprocess, EVALUATION_BATCH, shuffle=False)
    found = evaluate(load(file), loader)
    size = file.stat().st_size
    if as_json:
        _print_json({"file": str(file), "bytes": size, "data": name, **asdict(found)})
        return
    _print(
        f"{file}: {network}, {size:,} bytes, error {found.error:.2f} % "
        f"on {found.examples:,} test images of {name}"
    )


@app.command("inspect")
def inspect_command(file: File, as_json: Json = False) -> None:
    """Show what is in a file: bytes of every tensor, bits and entropy a value."""
    found = inspect(file)
    if as_json:
        _print_json(found.to_dict())
        return
    _print(f"{file}: {found.network or 'a model of your own'}, {found.coder} coder")
    Console(markup=False).print(_tensor_table(found))
    parts = ", ".join(f"{name} {size:,}" for name, size in found.parts.items())
    _print(f"{found.size:,} bytes: {parts}")


@app.command("list")
def list_command(as_json: Json = False) -> None:
    """List schemes, networks, data sets and the recipes in this folder."""
    recipes = {str(path): _title(path) for path in sorted(Path("recipes").glob("**/*.yaml"))}
    kinds = {
        "schemes": dict(SCHEMES),
        "networks": {name: net.description for name, net in NETWORKS.items()},
        "data sets": {name: data.description for name, data in DATASETS.items()},
        "recipes": recipes,
    }
    if as_json:
        _print_json(kinds)
        return
    for kind, entries in kinds.items():
        table = Table(title=kind, title_justify="left", show_header=False, box=None)
        for name, description in entries.items():
            table.add_row(name, description)
        if entries:
            Console(markup=False).print(table)


def main() -> None:
    """Run the command line; errors a user can cause are printed without a traceback."""
    logging.basicConfig(format="%(message)s")
    if not Console().is_terminal:  # on one, a bar shows the progress that these lines tell
        logging.getLogger("tensorpress").setLevel(logging.INFO)
    try:
        app()
    except TensorPressError as error:
        Console(stderr=True, highlight=False).print(
            f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True
        )
        sys.exit(1)


def _show(result: RunResult, as_json: bool) -> None:
    if as_json:
        _print_json(result.metrics)
        return
    console = Console()
    console.print(layer_table(result.content.layers))
    console.print(headline_table(result.metrics))
    _print(f"file    {result.folder / 'model.tpz'}")
    _print(f"report  {(result.folder / 'report.html').resolve().as_uri()}")


def _usual_data(net: Network) -> str:
    if len(net.input_shape) == 4:
        return "moving-digits"
    return "mnist" if net.input_shape[0] == 1 else "cifar10"


def _title(path: Path) -> str:
    try:
        return read_recipe(path).title
    except TensorPressError:
        return "has mistakes, which tensorpress run shows"


def _print(line: str) -> None:
    Console(markup=False).print(line, soft_wrap=True)


def _tensor_table(found: Inspection) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("tensor", overflow="fold")
    for heading in ("shape", "stored as"):
        table.add_column(heading, no_wrap=True)
    for heading in ("bytes", "bits", "entropy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for tensor in found.tensors:
        table.add_row(
            tensor.short_name,
            by(tensor.shape) or "scalar",
            tensor.storage,
            f"{tensor.bytes:,.1f}",
            f"{tensor.bits_per_value:.2f}",
            "–" if tensor.entropy is None else f"{tensor.entropy:.2f}",
        )
    return table


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
