"""The command eval: what a model costs, and its error on a data set."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from tensorpress.cli.options import Inputs, Json, Model, WeightFile
from tensorpress.cli.output import print_json, print_line
from tensorpress.cli.subject import Subject, inputs_for, open_subject
from tensorpress.codec.inspect import inspect
from tensorpress.data import DATASETS, ImageSet, batches, load
from tensorpress.errors import InvalidArgumentError, ModelMismatchError, unknown_name
from tensorpress.measure import count_macs, count_params, latencies
from tensorpress.measure.cost import evaluating
from tensorpress.models import check_inputs
from tensorpress.phases import EVALUATION_BATCH
from tensorpress.schemes.dimensions import by
from tensorpress.sources import load_splits
from tensorpress.train import evaluate
from tensorpress.zoo import NETWORKS, Network, Preprocess

IMAGENET = Preprocess(scale=255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""What models of other libraries are given colour images by."""

BATCH = 64
"""How many of their images, which may be large, are in memory at a time."""

GREY = Preprocess(scale=255, mean=(0.0,), std=(1.0,))
"""And grey ones."""


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
    root: Annotated[
        Path | None,
        typer.Option("--root", help="Folder of the data sets; TENSORPRESS_DATA if not given."),
    ] = None,
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
    taken = inputs_for(subject.name, subject.model, inputs or ())
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
    timed = {"latency_ms": latencies([model], inputs)[0], "batch": inputs[0].shape[0]}
    return {**found, "macs": count_macs(model, inputs), **timed}


def _error(
    subject: Subject, inputs: Sequence[Tensor] | None, data: str, root: Path | None
) -> dict[str, Any]:
    net = NETWORKS.get(subject.name or "")
    if net is not None:
        preprocess = net.preprocess
        test = load_splits(net, data, root).test
        found = evaluate(subject.model, batches(test, preprocess, EVALUATION_BATCH, shuffle=False))
    else:
        shape = _shape_for(subject, inputs, data)
        preprocess = IMAGENET if shape[0] == len(IMAGENET.mean) else GREY
        test = load(data, root).test
        found = evaluate(subject.model, _resized(test, shape[1:], preprocess))
    return {"data": data, **asdict(found), "preprocess": asdict(preprocess)}


def _resized(
    images: ImageSet, size: Sequence[int], preprocess: Preprocess
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches at another size; all at once might not fit into memory."""
    for start in range(0, len(images), BATCH):
        part = images.subset(range(start, min(start + BATCH, len(images)))).resized(*size)
        yield preprocess(part.images), part.labels


def _shape_for(subject: Subject, inputs: Sequence[Tensor] | None, data: str) -> tuple[int, ...]:
    """Return the shape of a model's input, without the batch.

    Raises
    ------
    InvalidArgumentError
        If the model does not take such images, or does not tell so many classes.
    """
    if data not in DATASETS:
        raise unknown_name("data set", data, DATASETS)
    known = DATASETS[data]
    shape = () if inputs is None or len(inputs) > 1 else tuple(inputs[0].shape[1:])
    classes = _classes(subject.model, inputs)
    if len(shape) != len(known.shape) or shape[0] != known.shape[0] or classes < known.classes:
        takes = by(shape) if shape else "unknown inputs"
        raise InvalidArgumentError(
            f"the data set {data!r} ({by(known.shape)}, classes: {known.classes}) does not fit "
            f"{subject.label} ({takes}, classes: {classes or 'unknown'})"
        )
    return shape


def _classes(model: nn.Module, inputs: Sequence[Tensor] | None) -> int:
    """Return how many classes a model tells, 0 where it is no classifier."""
    if inputs is None:
        return 0
    with evaluating(model), torch.no_grad():
        logits = model(*inputs)
    return logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 else 0


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
