"""The command report."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tensorpress as tp
from tensorpress.cli.options import Inputs, Json, Model, Preprocess, Root, WeightFile
from tensorpress.cli.output import print_json, print_line, print_table
from tensorpress.errors import InvalidArgumentError
from tensorpress.utils.atomic_files import check_writable, write_atomically

if TYPE_CHECKING:
    from tensorpress.cli.model_source import DenseByName
    from tensorpress.models.origin import Origin


def report_command(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="A .tpz file, or a folder written by press, compress or run; several are "
            "compared on one page."
        ),
    ],
    model: Model = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The page; its numbers are written next to it as .json."),
    ] = Path("report.html"),
    weights: WeightFile = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Inputs on which to compare outputs: a dataset, a folder or file, or "
            "package.module:function; by default the data that the model names.",
        ),
    ] = None,
    inputs: Inputs = None,
    root: Root = None,
    preprocess: Preprocess = None,
    as_json: Json = False,
) -> None:
    """Write a page that compares a pressed model with its dense model, or several models.

    The page of one model has its layers, errors, times and the difference of its outputs from the
    dense model; that of several has a table and a plot. A folder names its dense model; for a file,
    set --model and --weights.

    Example: tensorpress report small smaller smallest.tpz --data photos --out comparison.html
    """
    from tensorpress.cli.calibration_data import CommandData, known_data
    from tensorpress.cli.model_source import load_source, model_place
    from tensorpress.hugging_face.pressed_config import read_plan
    from tensorpress.report.model_page import write_model_page

    if out.suffix.lower() not in (".html", ".htm"):
        raise InvalidArgumentError(f"--out must be a page, a file that ends in .html, got {out}")
    numbers = out.with_suffix(".json")
    for file in (out, numbers):
        check_writable(file)
    if len(sources) > 1:
        content = _compare(sources, model, weights, inputs, data, root, preprocess)
        write_atomically(numbers, (json.dumps(content, indent=1) + "\n").encode())
        _print_comparison(content, out, numbers, as_json)
        return
    [source] = sources
    dense, origin = _trained_dense(source, model, weights, inputs)
    pressed = load_source(source, dense.name, None).model
    batches = None
    data = known_data(origin, root) if data is None else data
    if data is not None:
        images = preprocess or origin.preprocess
        batches = CommandData.for_dense(dense, data, root, images).held_out()
    content = {"command": shlex.join(["tensorpress", *sys.argv[1:]])} | tp.report(
        dense.model,
        pressed,
        batches=batches,
        example_inputs=dense.inputs(dense.model),
        title=f"{source.name}: {dense.name}",
        plan=read_plan(source) if source.is_dir() else None,
    )
    content["data"] = data
    if (place := model_place(source)).is_file():
        content["costs"]["bytes"]["compressed"] = place.stat().st_size
    write_atomically(numbers, (json.dumps(content, indent=1) + "\n").encode())
    write_model_page(content, out)
    if as_json:
        print_json(content)
        return
    print_line(content["verdict"] if data is None else f"on {data}: {content['verdict']}")
    for name, cost in content["costs"].items():
        share = f" ({100 * cost['compressed'] / cost['dense']:.1f} %)" if cost["dense"] else ""
        digits = 2 if name == "latency_ms" else 0
        before, after = (f"{cost[key]:,.{digits}f}" for key in ("dense", "compressed"))
        print_line(f"{name}: {before} dense, {after} pressed{share}")
    print_line(f"written  {out}, {numbers}")


def _trained_dense(
    source: Path, model: str | None, weights: Path | None, inputs: list[str] | None
) -> tuple[DenseByName, Origin]:
    """Return the dense model of a source with its weights, and the origin of the source."""
    from tensorpress.cli.model_source import find_dense, has_random_weights

    dense, origin = find_dense(source, model, weights, inputs)
    if dense.weights is None and has_random_weights(dense.name):
        raise InvalidArgumentError(
            f"{dense.name} has random weights, so there is nothing to compare: set --weights to "
            f"the weight file of the dense model of {source}"
        )
    return dense, origin


def _compare(
    sources: list[Path],
    model: str | None,
    weights: Path | None,
    inputs: list[str] | None,
    data: str | None,
    root: Path | None,
    preprocess: str | None,
) -> dict[str, Any]:
    """Return the comparison of several files and folders, with their sizes."""
    from tensorpress.cli.calibration_data import CommandData, known_data
    from tensorpress.cli.model_source import load_source, stored_bytes

    dense: dict[str, Any] = {}
    models, sizes = {}, {}
    folder = os.path.commonpath([source.absolute().parent for source in sources])
    same: dict[tuple[str, Path | None], DenseByName] = {}
    names: set[str | None] = set()
    for source in sources:
        dense_of_it, origin = _trained_dense(source, model, weights, inputs)
        names.add(origin.data)
        by_name = same.setdefault((dense_of_it.name, dense_of_it.weights), dense_of_it)
        name = str(source.absolute().relative_to(folder))
        dense[name] = by_name.model
        models[name] = load_source(source, by_name.name, None).model
        sizes[name] = stored_bytes(source)
    first = next(iter(same.values()))
    batches = error = None
    if data is None and len(names) == 1:
        data = known_data(origin, root)
    if data is not None:
        opened = CommandData.for_dense(first, data, root, preprocess or origin.preprocess)
        batches, error = opened.held_out(), opened.error_function()
    content = tp.compare(
        dense,
        models,
        batches=batches,
        example_inputs=first.inputs(first.model),
        evaluate=error,
        title=f"{len(sources)} models from {', '.join(dict.fromkeys(name for name, _ in same))}",
    )
    for row in content["models"]:
        row["bytes"] = sizes.get(row["name"], row["bytes"])
    return {"command": shlex.join(["tensorpress", *sys.argv[1:]]), **content, "data": data}


def _print_comparison(content: dict[str, Any], out: Path, numbers: Path, as_json: bool) -> None:
    from tensorpress.report.comparison_page import comparison_table, write_comparison_page

    write_comparison_page(content, out)
    if as_json:
        print_json(content)
        return
    print_table(comparison_table(content["models"]))
    if content["data"] is not None:
        print_line(f"outputs compared on {content['data']}")
    if any("metric" in row for row in content["models"]):
        print_line("metric: error in %, on examples that nothing is fitted to")
    print_line(f"written  {out}, {numbers}")
