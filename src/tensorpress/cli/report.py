"""The command report."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

import tensorpress as tp
from tensorpress.cli.options import SOURCE, Inputs, Json, Model, Preprocess, Root, WeightFile
from tensorpress.cli.output import print_json, print_line
from tensorpress.errors import InvalidArgumentError
from tensorpress.utils.atomic_files import check_writable, write_atomically


def report_command(
    source: Annotated[Path, SOURCE],
    model: Model = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The page; its numbers go beside it as .json.")
    ] = Path("report.html"),
    weights: WeightFile = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Inputs to compare the outputs on: a data set, a folder or file, or "
            "package.module:function.",
        ),
    ] = None,
    inputs: Inputs = None,
    root: Root = None,
    preprocess: Preprocess = None,
    as_json: Json = False,
) -> None:
    """Write a page on a pressed model: layers, errors, times, and outputs beside the dense model's.

    A folder says which dense model it was made from; --model and --weights say it of a file.

    Example: tensorpress report small.tpz --model torchvision:resnet18 --weights resnet18.pt
    """
    from tensorpress.cli.calibration_data import CommandData
    from tensorpress.cli.model_source import (
        find_dense,
        has_random_weights,
        load_source,
        model_place,
    )
    from tensorpress.hugging_face.pressed_config import read_plan
    from tensorpress.report.model_page import write_model_page

    if out.suffix.lower() not in (".html", ".htm"):
        raise InvalidArgumentError(f"--out is a page: a file that ends in .html, not {out}")
    numbers = out.with_suffix(".json")
    for file in (out, numbers):
        check_writable(file)
    dense, origin = find_dense(source, model, weights, inputs)
    weights = dense.weights
    if weights is None and has_random_weights(dense.name):
        raise InvalidArgumentError(
            f"{dense.name} has random weights, with which nothing can be compared: give --weights, "
            f"the file of the dense model from which {source} was made"
        )
    pressed = load_source(source, dense.name, None).model
    batches = None
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
    if (place := model_place(source)).is_file():
        content["costs"]["bytes"]["compressed"] = place.stat().st_size
    write_atomically(numbers, (json.dumps(content, indent=1) + "\n").encode())
    write_model_page(content, out)
    if as_json:
        print_json(content)
        return
    print_line(content["verdict"])
    for name, cost in content["costs"].items():
        share = f" ({100 * cost['compressed'] / cost['dense']:.1f} %)" if cost["dense"] else ""
        digits = 2 if name == "latency_ms" else 0
        before, after = (f"{cost[key]:,.{digits}f}" for key in ("dense", "compressed"))
        print_line(f"{name}: {before} dense, {after} pressed{share}")
    print_line(f"written  {out}, {numbers}")
