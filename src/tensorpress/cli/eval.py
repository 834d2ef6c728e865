"""The command eval: what a model costs, and its error on a data set."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor, nn

from tensorpress.cli.calibration_data import image_batches
from tensorpress.cli.model_source import Subject, find_inputs, open_subject
from tensorpress.cli.options import Inputs, Json, Model, Root, WeightFile
from tensorpress.cli.output import print_json, print_line
from tensorpress.codec.inspect import inspect
from tensorpress.errors import ModelMismatchError
from tensorpress.measure import count_macs, count_params, measure_latencies
from tensorpress.models import check_inputs
from tensorpress.models.zoo import NETWORKS, Network
from tensorpress.train import evaluate


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
            help="Data set. For a .tpz file if not given MNIST for grey and CIFAR-10 for colour "
            "images, moving-digits for clips; else none."
        ),
    ] = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Measure what a model costs, and its error on the test images of a data set.

    Networks of the zoo get images as they were trained with; other models get them at the size of
    their input, normalized as for ImageNet.

    Example: tensorpress eval pressed --data cifar10
    """
    if source is not None and not source.is_dir() and model is None:
        _eval_file(source, data, root, as_json)
        return
    subject = open_subject(source, model, weights)
    taken = find_inputs(subject.name, subject.model, inputs or ())
    if taken is not None:
        check_inputs(subject.model, taken)
    told = {"model": subject.label, **_costs(subject.model, taken)}
    if data is not None:
        told |= _error(subject, taken, data, root)
    if as_json:
        print_json(told)
        return
    _show(told)


def _eval_file(file: Path, data: str | None, root: Path | None, as_json: bool) -> None:
    """Decode a file of a network of the zoo and measure its error."""
    name = inspect(file).network
    if name is None:
        raise ModelMismatchError(
            f"{file} holds a model that is not in the zoo: say by --model how it is built"
        )
    data = data or _usual_data(NETWORKS[name])
    subject = open_subject(file, None, None)
    found = _error(subject, None, data, root)
    size = file.stat().st_size
    if as_json:
        del found["preprocess"]
        print_json({"file": str(file), "bytes": size, **found})
        return
    print_line(
        f"{file}: {name}, {size:,} bytes, error {found['error']:.2f} % "
        f"on {found['examples']:,} test images of {data}"
    )


def _costs(model: nn.Module, inputs: Sequence[Tensor] | None) -> dict[str, Any]:
    held = [*model.parameters(), *model.buffers()]
    found = {
        "params": count_params(model),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in held),
    }
    if inputs is None:
        return found
    timed = {"latency_ms": measure_latencies([model], inputs)[0], "batch": inputs[0].shape[0]}
    return {**found, "macs": count_macs(model, inputs), **timed}


def _error(
    subject: Subject, inputs: Sequence[Tensor] | None, data: str, root: Path | None
) -> dict[str, Any]:
    preprocess, loader = image_batches(subject, inputs, data, root, part="test")
    return {
        "data": data,
        **asdict(evaluate(subject.model, loader)),
        "preprocess": asdict(preprocess),
    }


def _show(told: dict[str, Any]) -> None:
    line = f"{told['model']}: {told['params']:,} parameters, {told['bytes']:,} bytes"
    if "macs" in told:
        line += f", {told['macs']:,} MACs, {told['latency_ms']:.2f} ms a batch of {told['batch']}"
    else:
        line += " (say what it takes by --input for MACs and latency)"
    print_line(line)
    if "data" in told:
        how = told["preprocess"]
        mean, std = (", ".join(f"{x:g}" for x in how[key]) for key in ("mean", "std"))
        print_line(
            f"error {told['error']:.2f} % on {told['examples']:,} test images of {told['data']}, "
            f"pixels over {how['scale']:g}, minus {mean}, over {std}"
        )


def _usual_data(net: Network) -> str:
    if len(net.input_shape) == 4:
        return "moving-digits"
    return "mnist" if net.input_shape[0] == 1 else "cifar10"
