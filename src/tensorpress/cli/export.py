"""The command export."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tensorpress as tp
from tensorpress.cli.options import Inputs, Json, Model, Source, WeightFile
from tensorpress.cli.output import print_json, print_line
from tensorpress.errors import InvalidArgumentError, TensorPressError
from tensorpress.export import Factors
from tensorpress.report import formatting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from tensorpress.cli.model_source import LoadedModel


def export_command(
    source: Source = None,
    *,
    onnx: Annotated[Path | None, typer.Option("--onnx", help="The ONNX file to write.")] = None,
    dense: Annotated[
        Path | None,
        typer.Option(
            "--dense", help="The folder to write for the dense checkpoint of a pressed folder."
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter",
            metavar="BASE",
            help="The original dense checkpoint, to write the error of pressing as a LoRA adapter.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder to write the adapter to.")
    ] = None,
    rank: Annotated[int, typer.Option(help="The rank of the adapter.", min=1)] = 16,
    model: Model = None,
    weights: WeightFile = None,
    inputs: Inputs = None,
    factors: Annotated[
        Factors,
        typer.Option(help="Write weights stored as factors as dense weights, or as factors."),
    ] = "materialize",
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            "--dynamic",
            help="A dynamic axis besides the batch, INPUT.AXIS=NAME: 0.2=height is the third axis "
            "of the first input; repeatable.",
        ),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="Version of the ONNX operators; by default that of torch.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model as an ONNX file, a pressed folder as a dense one, or its error as an adapter.

    An ONNX file is compared with the model in onnxruntime. A dense folder can be loaded by
    transformers, vLLM and the converter of llama.cpp. An adapter is for PEFT, on top of the pressed
    model.

    For a file or folder, set --model if its dense model is unknown.

    Dynamic axes are compared at the sizes of the example inputs, and at twice these sizes.

    Example: tensorpress export pressed --onnx model.onnx --dynamic 0.2=height --dynamic 0.3=width
    """
    if [onnx, dense, adapter].count(None) != 2:
        raise InvalidArgumentError("expected one of --onnx FILE, --dense FOLDER and --adapter BASE")
    if onnx is None:
        _export_folder(source, dense, adapter, out, model, rank, as_json)
        return
    from tensorpress.cli.model_source import load_source, require_inputs

    loaded = load_source(source, model, weights)
    config: Any = getattr(loaded.model, "config", None)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # so that keys and values are not outputs of the file
    example = require_inputs(loaded, inputs or ())
    shapes = None if dynamic is None else _parse_axes(dynamic, example)
    file = tp.export_onnx(
        loaded.model, example, onnx, factors=factors, dynamic_shapes=shapes, opset=opset
    )
    difference = None
    if find_spec("onnxruntime") is not None:
        difference = tp.check_onnx(loaded.model, example, onnx)
        if shapes is not None:
            difference = max(difference, _check_twice(loaded.model, example, shapes, onnx))
    if as_json:
        print_json(
            {
                "file": str(onnx),
                "bytes": file.bytes,
                "any_batch": file.any_batch,
                "inputs": file.inputs,
                "difference": difference,
            }
        )
        return
    batch = "any batch" if file.any_batch else f"batch {example[0].shape[0]} only"
    print_line(f"{onnx}: {' '.join(formatting.size(file.bytes))}, {batch}")
    if shapes is not None:
        for name, shape in file.inputs.items():
            print_line(f"input {name}: {' x '.join(map(str, shape))}")
    if difference is None:
        print_line("not compared with the model: pip install onnxruntime")
    else:
        print_line(
            f"largest difference from the model in onnxruntime: {difference:.1e} of its output"
        )


def _export_folder(
    source: Path | None,
    dense: Path | None,
    adapter: Path | None,
    out: Path | None,
    model: str | None,
    rank: int,
    as_json: bool,
) -> None:
    """Write the dense checkpoint of a pressed folder, or the error of pressing."""
    from tensorpress.checkpoints.lora_adapter import write_adapter
    from tensorpress.cli.model_source import load_source, model_place
    from tensorpress.models.origin import Origin

    if source is None or not source.is_dir():
        raise InvalidArgumentError("--dense and --adapter need the folder of a pressed model")
    is_encoded = model_place(source) != source
    if is_encoded and dense is None:
        raise InvalidArgumentError(
            f"{source} holds {model_place(source).name}: --adapter needs a folder that press wrote"
        )
    if dense is not None and is_encoded:
        _write_decoded(load_source(source, model, None), dense)
        folder = dense
    elif dense is not None:
        origin = model or Origin.read(source).trusted_model(source)
        built = None if origin is None else tp.load_model(origin, meta=True)
        tp.unpress_checkpoint(source, dense, model=built)
        folder = dense
    elif out is None or adapter is None:
        raise InvalidArgumentError("set the output folder for the adapter by --out")
    else:
        write_adapter(source, adapter, out, rank)
        folder = out
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if as_json:
        print_json({"folder": str(folder), "bytes": size})
    else:
        print_line(f"{folder}: {' '.join(formatting.size(size))}")


def _write_decoded(loaded: LoadedModel, folder: Path) -> None:
    """Write the dense weights of a model from a ``.tpz`` file, with the config if it has one."""
    from tensorpress.checkpoints.save import create_folder
    from tensorpress.models.zoo import save_weights

    model: Any = tp.unpress(loaded.model, inplace=True)
    with create_folder(folder) as temporary:
        if (loaded.name or "").startswith("hf:"):
            model.save_pretrained(temporary)
        else:
            save_weights(model, temporary / "model.safetensors")


def _parse_axes(texts: Sequence[str], inputs: Sequence[Tensor]) -> list[dict[int, str]]:
    """Return the names of the dynamic axes of every input, including the batch."""
    batch = len(inputs[0])
    shapes = [{0: "batch"} if x.ndim and len(x) == batch else {} for x in inputs]
    for text in texts:
        match = re.fullmatch(r"(\d+)\.(\d+)=(\w+)", text)
        if match is None:
            raise InvalidArgumentError(
                f"--dynamic: expected INPUT.AXIS=NAME, such as 0.2=height, got {text!r}"
            )
        place, axis, name = int(match[1]), int(match[2]), match[3]
        if place >= len(inputs) or axis >= inputs[place].ndim:
            known = ", ".join(str(tuple(x.shape)) for x in inputs)
            raise InvalidArgumentError(
                f"--dynamic {text}: no such axis; inputs and axes are numbered from 0, and the "
                f"inputs have shapes {known}"
            )
        shapes[place][axis] = name
    return shapes


def _check_twice(
    model: nn.Module, inputs: Sequence[Tensor], shapes: Sequence[dict[int, str]], onnx: Path
) -> float:
    """Return the difference at twice the size of every dynamic axis."""
    import torch

    larger, names = list(inputs), dict.fromkeys(name for axes in shapes for name in axes.values())
    for place, axes in enumerate(shapes):
        for axis in axes:
            larger[place] = torch.cat([larger[place], larger[place]], axis)
    try:
        return tp.check_onnx(model, larger, onnx)
    except TensorPressError as error:
        raise type(error)(f"at twice the size of {', '.join(names)}: {error}") from error
