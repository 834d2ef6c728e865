"""The command eval: the costs of a model, and its error on a dataset or a text."""

from __future__ import annotations

from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tensorpress.cli.eval_text import ARRAYS, DType, TextOptions, eval_text
from tensorpress.cli.options import Inputs, Json, Model, Preprocess, Root, Source, WeightFile
from tensorpress.cli.output import print_json, print_line
from tensorpress.errors import InvalidArgumentError

if TYPE_CHECKING:
    from torch import nn

    from tensorpress.cli.model_source import LoadedModel
    from tensorpress.measure.model_inputs import ModelInputs

TEXTS = ("", ".txt", ".md", ".raw", ".tokens")
"""Suffixes of text files."""


def eval_command(
    source: Source = None,
    model: Model = None,
    weights: WeightFile = None,
    inputs: Inputs = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Labelled data: a dataset (tensorpress list), a folder or file, or "
            "package.module:function; for a language model a text. A .tpz file may name its data.",
        ),
    ] = None,
    root: Root = None,
    preprocess: Preprocess = None,
    window: Annotated[
        int | None,
        typer.Option(
            help="Tokens per window of the text; by default 2048, or the model's maximum.", min=2
        ),
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(help="Number of windows from the start of the text; by default all.", min=1),
    ] = None,
    dtype: Annotated[
        DType, typer.Option(help="The dtype of a language model for a text.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="The device of a language model for a text.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Measure the costs of a model, and its error on labelled data or its perplexity on a text.

    For a language model, --data TEXT gives the perplexity in windows that do not overlap, the
    tokens per second that it reads and writes, and the peak memory. In a file of arrays, every row
    of input_ids is a window.

    Images are preprocessed as the model defines, or by --preprocess. MACs and latency are those of
    --input, else of an example of the data.

    Example: tensorpress eval --model timm:resnet18 --weights r18.safetensors --data imagenet/val
    """
    from tensorpress.cli.calibration_data import known_data
    from tensorpress.cli.model_source import load_source, model_place
    from tensorpress.measure.model_inputs import ModelInputs
    from tensorpress.models import check_inputs
    from tensorpress.models.zoo import NETWORKS

    loaded = load_source(source, model, weights)
    place = None if source is None else model_place(source)
    if place is not None and place.is_file() and model is None and loaded.name in NETWORKS:
        _eval_zoo_file(loaded, place, data, root, preprocess, as_json)
        return
    if data is not None and _is_text(loaded, Path(data)):
        eval_text(loaded, Path(data), TextOptions(window, windows, dtype, device), as_json)
        return
    if TextOptions(window, windows, dtype, device) != TextOptions():
        raise InvalidArgumentError(
            "--window, --windows, --dtype and --device are for a language model on a text: give "
            "--data FILE.txt, or a file of input_ids"
        )
    data = known_data(loaded.origin, root) if data is None else data
    error: dict[str, Any] = {}
    arguments = None
    if inputs or data is None:
        example = loaded.inputs(inputs, preprocess)
        if example is not None:
            check_inputs(loaded.model, example)
            arguments = ModelInputs.parse(example)
    if data is not None:
        error, of_data = _measure_error(loaded, data, root, preprocess)
        arguments = arguments or of_data
    metrics = {"model": loaded.label, **_measure_costs(loaded.model, arguments)}
    if place is not None and place.is_file():
        metrics["bytes"] = place.stat().st_size
    metrics |= error
    if as_json:
        print_json(metrics)
        return
    _print_metrics(metrics)


def _is_text(loaded: LoadedModel, data: Path) -> bool:
    """Return whether the data are a text for a Transformers model, or tokens to predict."""
    from tensorpress.measure.perplexity import is_language_model

    if not (loaded.name or "").startswith("hf:") or not data.is_file():
        return False
    kind = data.suffix.lower()
    return kind in TEXTS or (kind in ARRAYS and is_language_model(loaded.model))


def _eval_zoo_file(
    loaded: LoadedModel,
    file: Path,
    data: str | None,
    root: Path | None,
    preprocess: str | None,
    as_json: bool,
) -> None:
    """Print the error of the file of a zoo network on its data."""
    data = _default_data(file, loaded) if data is None else data
    metrics, _ = _measure_error(loaded, data, root, preprocess)
    size = file.stat().st_size
    if as_json:
        print_json({"file": str(file), "bytes": size, **metrics})
        return
    print_line(
        f"{file}: {loaded.name}, {size:,} bytes, error {metrics['error']:.2f} % "
        f"on {metrics['examples']:,} test images of {data}"
    )


def _measure_costs(model: nn.Module, inputs: ModelInputs | None) -> dict[str, Any]:
    from tensorpress.measure import count_bytes, count_macs, count_params, measure_latencies
    from tensorpress.models import format_inputs

    costs = {"params": count_params(model), "bytes": count_bytes(model)}
    if inputs is None:
        return costs
    latency = {"latency_ms": measure_latencies([model], inputs)[0], "batch": inputs.batch}
    return {
        **costs,
        "input": format_inputs(inputs),
        "macs": count_macs(model, inputs),
        **latency,
    }


def _measure_error(
    loaded: LoadedModel, data: str, root: Path | None, preprocess: str | None
) -> tuple[dict[str, Any], ModelInputs]:
    """Return the error of a model on data, and the inputs of their first example."""
    from tensorpress.calibrate.batches import collect_batches
    from tensorpress.cli.calibration_data import CommandData
    from tensorpress.cli.classification import classification_error

    test = CommandData.open(loaded, data, root, preprocess).test()
    batches = iter(test.batches)  # which may be iterated only once
    try:
        first = list(islice(batches, 1))
        result = classification_error(loaded.model, chain(first, batches))
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{data}: {error}") from error
    [batch] = collect_batches(first, loaded.model)
    inputs = batch.arguments.map(lambda x: x[:1] if x.ndim else x)
    return {"data": data, **asdict(result), "preprocess": test.text}, inputs


def _print_metrics(metrics: dict[str, Any]) -> None:
    line = f"{metrics['model']}: {metrics['params']:,} parameters, {metrics['bytes']:,} bytes"
    if "macs" in metrics:
        line += f", {metrics['macs']:,} MACs"
        line += f", {metrics['latency_ms']:.2f} ms for an input of {metrics['input']}"
    else:
        line += " (set --input for MACs and latency)"
    print_line(line)
    if "data" in metrics:
        print_line(
            f"error {metrics['error']:.2f} % on {metrics['examples']:,} test examples of "
            f"{metrics['data']}, {metrics['preprocess']}"
        )


def _default_data(file: Path, loaded: LoadedModel) -> str:
    """Return the data that a file names, or the only dataset that fits its network.

    Raises
    ------
    InvalidArgumentError
        If the file names no known data, and several datasets fit.
    """
    from tensorpress.data import DATASETS
    from tensorpress.data.splits import fits
    from tensorpress.models.zoo import NETWORKS

    stored = loaded.origin.data
    if stored is not None and stored in DATASETS:
        return stored
    known = [data for data in DATASETS if fits(NETWORKS[loaded.name or ""], data)]
    if stored is None and len(known) == 1:
        return known[0]
    why = "does not name its data" if stored is None else f"is for the data {stored!r}"
    raise InvalidArgumentError(f"{file} {why}: set --data ({', '.join(known)}, …)")
