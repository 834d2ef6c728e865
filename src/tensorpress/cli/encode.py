"""The commands encode and decode: small files of models and tensors, without training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

import tensorpress as tp
from tensorpress.cli.options import Data, Json, Model, Preprocess, Processes, Root, WeightFile
from tensorpress.cli.output import print_json, print_line, print_table
from tensorpress.errors import InvalidArgumentError
from tensorpress.report import formatting
from tensorpress.utils.formatting import format_shape

if TYPE_CHECKING:
    from torch import Tensor, nn

_UNIT_BYTES = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3}
_UNIT_BYTES |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def encode_command(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="A safetensors file or a folder of them, or a .tpz file or pressed folder to "
            "encode again."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The file, by default SOURCE.tpz; for a folder, a new folder."
        ),
    ] = None,
    target_error: Annotated[
        float | None, typer.Option(help="Largest relative error over all weights: 0.01.")
    ] = None,
    bits: Annotated[
        float | None, typer.Option(help="Maximum bits per value of the whole file: 3.5.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Maximum size of the whole file: 200kB, 1.5MiB.")
    ] = None,
    lossless: Annotated[
        bool, typer.Option("--lossless", help="Store losslessly, instead of a budget.")
    ] = False,
    data: Data = None,
    root: Root = None,
    preprocess: Preprocess = None,
    model: Model = None,
    weights: WeightFile = None,
    processes: Processes = 1,
    as_json: Json = False,
) -> None:
    """Round and entropy code a model or the tensors of a file to a budget, without training.

    A safetensors file becomes a file that is decoded without a model. A model (--model and
    --weights) becomes a file from which it is loaded again. With --data the error is much smaller
    for the same size. A folder is encoded to a new folder by --bits or --lossless, with one tensor
    per process in memory; after an interruption, repeat the command to continue.

    Example: tensorpress encode model.safetensors --bits 3.5
    """
    from tensorpress.cli.calibration_data import ENCODE_SAMPLE, CommandData
    from tensorpress.cli.model_source import load_source
    from tensorpress.data.sources import short_name
    from tensorpress.models.zoo import NETWORKS
    from tensorpress.models.zoo.weights import read_weights

    if source is not None and source.is_dir() and out is not None and out.suffix != ".tpz":
        others = (target_error, size, data, model, weights)
        if any(option is not None for option in others):
            raise InvalidArgumentError(
                f"{source} can only be encoded to a folder by --bits or --lossless"
            )
        coded = tp.encode_checkpoint(source, out, bits=bits, lossless=lossless, processes=processes)
        if as_json:
            print_json({"folder": str(out), "bytes": coded})
        else:
            print_line(f"{out}: {' '.join(formatting.size(coded))}")
        return
    limit = None if size is None else parse_size(size)
    network = calibration = name = images = None
    content: nn.Module | Mapping[str, Tensor]
    if source is not None and source.is_file() and source.suffix != ".tpz":
        if model is not None or weights is not None:
            raise InvalidArgumentError(
                f"{source} is a file of tensors: for a model use --model and --weights {source}"
            )
        if data is not None:
            raise InvalidArgumentError(f"--data needs a model: use --model and --weights {source}")
        content = read_weights(source)
    else:
        loaded = load_source(source, model, weights)
        content = loaded.model
        network = loaded.name if loaded.name in NETWORKS else None
        if data is not None:
            opened = CommandData.open(loaded, data, root, preprocess)
            calibration = opened.sample(ENCODE_SAMPLE)
        name = short_name(data) if data else loaded.origin.data
        images = preprocess or loaded.origin.preprocess
    path = out or _default_path(source, model)
    result = tp.encode(
        content,
        path,
        target_error=target_error,
        bits=bits,
        size=limit,
        lossless=lossless,
        network=network,
        data=name,
        preprocess=images,
        calibration=calibration,
    )
    if as_json:
        print_json({"file": str(path), **result.to_dict()})
        return
    if not lossless:
        print_table(_tensor_table(result))
    print_line(f"{path}: {result}")


def decode_command(
    file: Annotated[Path, typer.Argument(help="A .tpz file, or a folder written by encode.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The file, by default FILE.safetensors; for a folder, a new folder."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the tensors of a .tpz file or an encoded folder as safetensors, by name.

    Example: tensorpress decode model.tpz --out model.safetensors
    """
    from tensorpress.checkpoints.safetensors_writer import open_shard_writer
    from tensorpress.cli.model_source import MODEL_FILE, model_place

    if file.is_dir() and not (file / MODEL_FILE).is_file():
        if out is None:
            raise InvalidArgumentError(f"{file} is a folder: set the output folder by --out")
        tp.decode_checkpoint(file, out)
        print_json({"folder": str(out)}) if as_json else print_line(str(out))
        return
    file = model_place(file)
    path = out or file.with_suffix(".safetensors")
    tensors = tp.decode(file)
    with open_shard_writer(path, tensors, finite=False) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    size, count = path.stat().st_size, len(tensors)
    values = sum(tensor.numel() for tensor in tensors.values())
    if as_json:
        print_json({"file": str(path), "bytes": size, "tensors": count, "values": values})
        return
    print_line(f"{path}: {count} tensors, {values:,} values, {' '.join(formatting.size(size))}")


def parse_size(text: str) -> int:
    """Return a number of bytes.

    Raises
    ------
    InvalidArgumentError
        If the text is not a number of bytes.

    Examples
    --------
    >>> [parse_size(text) for text in ("1500", "200kB", "1.5 MiB")]
    [1500, 200000, 1572864]
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d+)?)\s*([a-z]*)\s*", text, re.IGNORECASE)
    if match is None or match[2].lower() not in _UNIT_BYTES:
        raise InvalidArgumentError(
            f"--size: expected a size such as 1500, 200kB or 1.5MiB, got {text!r}"
        )
    return int(float(match[1]) * _UNIT_BYTES[match[2].lower()])


def _default_path(source: Path | None, model: str | None) -> Path:
    if source is None:
        raise InvalidArgumentError(f"set the output file for {model or 'the model'} by --out")
    if source.suffix == ".tpz":
        raise InvalidArgumentError(f"{source} is already encoded: set the output file by --out")
    return source.with_name(source.name.removesuffix(".safetensors") + ".tpz")


def _tensor_table(result: tp.EncodeResult) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("tensor", overflow="fold")
    table.add_column("shape", no_wrap=True)
    for heading in ("step", "bits", "zeros", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for t in result.tensors:
        numbers = (f"{t.step:.3g}", f"{t.entropy:.2f}", f"{100 * t.zeros:.0f} %", f"{t.error:.4f}")
        table.add_row(t.name, format_shape(t.shape), *numbers)
    return table
