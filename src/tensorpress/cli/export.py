"""The command export."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

import tensorpress as tp
from tensorpress.cli.options import Inputs, Json, Model, WeightFile
from tensorpress.cli.output import print_json, print_line
from tensorpress.export import Factors
from tensorpress.report import formatting


def export_command(
    source: Annotated[
        Path | None, typer.Argument(help="A .tpz file, or a folder that press wrote.")
    ] = None,
    *,
    onnx: Annotated[Path, typer.Option("--onnx", help="The file to write.")],
    model: Model = None,
    weights: WeightFile = None,
    inputs: Inputs = None,
    factors: Annotated[
        Factors,
        typer.Option(
            help="Weights stored as factors are written as dense ones, or kept as factors."
        ),
    ] = "materialize",
    as_json: Json = False,
) -> None:
    """Write a model as an ONNX file, and compare it with the model in onnxruntime.

    With a file or a folder, --model says what the dense model is where that is not known.

    Example: tensorpress export pressed --onnx model.onnx
    """
    from tensorpress.cli.model_source import load_source, require_inputs

    loaded = load_source(source, model, weights)
    config: Any = getattr(loaded.model, "config", None)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # keys and values of earlier tokens are no output of a file
    example = require_inputs(loaded, inputs or ())
    file = tp.export_onnx(loaded.model, example, onnx, factors=factors)
    difference = None
    if find_spec("onnxruntime") is not None:
        difference = tp.check_onnx(loaded.model, example, onnx)
    if as_json:
        print_json(
            {
                "file": str(onnx),
                "bytes": file.bytes,
                "any_batch": file.any_batch,
                "difference": difference,
            }
        )
        return
    batch = "any batch" if file.any_batch else f"batch {example[0].shape[0]} only"
    print_line(f"{onnx}: {' '.join(formatting.size(file.bytes))}, {batch}")
    if difference is None:
        print_line("not compared with the model: pip install onnxruntime")
    else:
        print_line(
            f"largest difference from the model in onnxruntime: {difference:.1e} of its output"
        )
