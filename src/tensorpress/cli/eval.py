"""The command eval: what a model costs, and its error on a data set or a text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tensorpress as tp
from tensorpress.cli.eval_text import DType, TextOptions, eval_text
from tensorpress.cli.options import Inputs, Json, Model, Root, WeightFile
from tensorpress.cli.output import print_json, print_line
from tensorpress.errors import ModelMismatchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from tensorpress.cli.model_source import LoadedModel
    from tensorpress.models.zoo import Network


def eval_command(
    source: Annotated[
        Path | None, typer.Argument(help="A .tpz file, or a folder that press wrote.")
    ] = None,
    model: Model = None,
    weights: WeightFile = None,
    inputs: Inputs = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set, or a file of text for a language model. For a .tpz file if not given "
            "MNIST for grey and CIFAR-10 for colour images, moving-digits for clips; else none."
        ),
    ] = None,
    root: Root = None,
    window: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a window of the text; by default 2048, or what the model takes.", min=2
        ),
    ] = None,
    windows: Annotated[
        int | None, typer.Option(help="Windows from the start of the text; all by default.", min=1)
    ] = None,
    dtype: Annotated[
        DType, typer.Option(help="The dtype in which a language model runs on a text.")
    ] = "auto",
    device: Annotated[
        str, typer.Option(help="The device on which a language model runs on a text.")
    ] = "cpu",
    as_json: Json = False,
) -> None:
    """Measure what a model costs, and its error on a data set or its perplexity on a text.

    Of a language model, --data TEXT gives the perplexity in windows that do not overlap, the tokens
    a second that it reads and writes, and the peak memory.

    Networks of the zoo get images as they were trained with; other models get them at the size of
    their input, normalized as for ImageNet.

    Example: tensorpress eval pressed --data cifar10
    """
    from tensorpress.cli.model_source import find_inputs, load_source
    from tensorpress.models import check_inputs

    if source is not None and not source.is_dir() and model is None:
        _eval_file(source, data, root, as_json)
        return
    loaded = load_source(source, model, weights)
    if data is not None and Path(data).is_file():
        eval_text(loaded, Path(data), TextOptions(window, windows, dtype, device), as_json)
        return
    example = find_inputs(loaded.name, loaded.model, inputs or ())
    if example is not None:
        check_inputs(loaded.model, example)
    metrics = {"model": loaded.label, **_measure_costs(loaded.model, example)}
    if data is not None:
        metrics |= _measure_error(loaded, example, data, root)
    if as_json:
        print_json(metrics)
        return
    _print_metrics(metrics)


def _eval_file(file: Path, data: str | None, root: Path | None, as_json: bool) -> None:
    """Decode a file of a network of the zoo and measure its error."""
    from tensorpress.cli.model_source import load_source
    from tensorpress.models.zoo import NETWORKS

    name = tp.inspect(file).network
    if name is None:
        raise ModelMismatchError(
            f"{file} holds a model that is not in the zoo: say by --model how it is built"
        )
    data = data or _default_data(NETWORKS[name])
    metrics = _measure_error(load_source(file, None, None), None, data, root)
    size = file.stat().st_size
    if as_json:
        del metrics["preprocess"]
        print_json({"file": str(file), "bytes": size, **metrics})
        return
    print_line(
        f"{file}: {name}, {size:,} bytes, error {metrics['error']:.2f} % "
        f"on {metrics['examples']:,} test images of {data}"
    )


def _measure_costs(model: nn.Module, inputs: Sequence[Tensor] | None) -> dict[str, Any]:
    from tensorpress.cli.model_source import count_bytes
    from tensorpress.measure import count_macs, count_params, measure_latencies

    costs = {"params": count_params(model), "bytes": count_bytes(model)}
    if inputs is None:
        return costs
    latency = {"latency_ms": measure_latencies([model], inputs)[0], "batch": inputs[0].shape[0]}
    return {**costs, "macs": count_macs(model, inputs), **latency}


def _measure_error(
    loaded: LoadedModel, inputs: Sequence[Tensor] | None, data: str, root: Path | None
) -> dict[str, Any]:
    from tensorpress.cli.calibration_data import load_image_batches
    from tensorpress.train import evaluate

    preprocess, loader = load_image_batches(loaded, inputs, data, root, part="test")
    return {
        "data": data,
        **asdict(evaluate(loaded.model, loader)),
        "preprocess": asdict(preprocess),
    }


def _print_metrics(metrics: dict[str, Any]) -> None:
    line = f"{metrics['model']}: {metrics['params']:,} parameters, {metrics['bytes']:,} bytes"
    if "macs" in metrics:
        line += f", {metrics['macs']:,} MACs"
        line += f", {metrics['latency_ms']:.2f} ms a batch of {metrics['batch']}"
    else:
        line += " (say what it takes by --input for MACs and latency)"
    print_line(line)
    if "data" in metrics:
        preprocess = metrics["preprocess"]
        mean, std = (", ".join(f"{x:g}" for x in preprocess[key]) for key in ("mean", "std"))
        print_line(
            f"error {metrics['error']:.2f} % on {metrics['examples']:,} test images of "
            f"{metrics['data']}, pixels over {preprocess['scale']:g}, minus {mean}, over {std}"
        )


def _default_data(net: Network) -> str:
    if len(net.input_shape) == 4:
        return "moving-digits"
    return "mnist" if net.input_shape[0] == 1 else "cifar10"
