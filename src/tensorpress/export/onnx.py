"""Writing a model as an ONNX file."""

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.export.dynamic_shapes import ShapesCollection
from torch.utils._pytree import tree_leaves

from tensorpress.errors import (
    InvalidArgumentError,
    TensorPressError,
    unknown_name,
)
from tensorpress.export import Factors
from tensorpress.measure.cost import evaluation_mode
from tensorpress.press.press import materialize
from tensorpress.schemes.parametrization import factorized_weight

_MAX_FOLDED = 64  # entries by which folding may enlarge a constant


@dataclass(frozen=True)
class OnnxFile:
    """A written ONNX file.

    Attributes
    ----------
    path : Path
        The file. Weights beyond 2 GB are in a second file beside it, of the same name and
        ``.data``.
    bytes : int
        Bytes of both files together.
    any_batch : bool
        Whether the file runs on batches of any size, or only of the example's size.
    """

    path: Path
    bytes: int
    any_batch: bool


def export_onnx(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    path: str | os.PathLike[str],
    *,
    factors: Factors = "materialize",
) -> OnnxFile:
    """Write a model, pressed or dense, as an ONNX file.

    The first axis of the file's inputs, the batch, may have any size. If the model itself fixes
    it, the file has the example's size, and a warning says the reason. The onnx package checks the
    file before it replaces a file at ``path``.

    Parameters
    ----------
    model : nn.Module
        The model, which is written as it computes in eval mode and left untouched.
    example_inputs : Tensor or sequence of Tensor
        Positional arguments of one forward pass; the first axis of each is the batch.
    path : path-like
        The file to write or replace.
    factors : {"materialize", "keep"}
        Whether a weight that is rebuilt from factors (ADA-Tucker, tt_weight) is written dense, or
        as its factors and the products that rebuild it. The latter gives a small file, whose
        weights a runtime rebuilds as it loads the file. Chains of layers and TT layers are written
        as they are in both cases.

    Returns
    -------
    OnnxFile
        Path, size and kind of batches of the file.

    Raises
    ------
    InvalidArgumentError
        If ``factors`` is unknown, the model does not run on the inputs, torch cannot export the
        model, or the file cannot be written.
    TensorPressError
        If the packages of ``pip install tensorpress[export]`` are not installed.

    Examples
    --------
    >>> import tensorpress as tp
    >>> folder = tempfile.mkdtemp()
    >>> pressed = tp.press_layer(nn.Linear(64, 64), "tt_weight", 2)
    >>> dense = export_onnx(pressed, torch.ones(3, 64), f"{folder}/dense.onnx")
    >>> small = export_onnx(pressed, torch.ones(3, 64), f"{folder}/small.onnx", factors="keep")
    >>> small.any_batch, dense.bytes - small.bytes > 3 * 64 * 64
    (True, True)
    """
    if factors not in get_args(Factors):
        raise unknown_name("choice of factors", factors, get_args(Factors))
    onnx, optimizer = import_extra("onnx"), import_extra("onnxscript.optimizer")
    passes = import_extra("onnx_ir.passes.common")
    inputs = as_tuple(example_inputs)
    if factors == "materialize" and any(map(factorized_weight, model.modules())):
        model = materialize(model)
    target = Path(path)
    with _temporary_folder(target) as folder:
        with evaluation_mode(model), torch.no_grad():
            run_on_inputs(model, inputs)
            traced, obstacle = _trace(model, inputs)
        # With gradients, the exporter would decompose attention.
        with _silence(), torch.no_grad():
            try:
                program = torch.onnx.export(traced, dynamo=True, optimize=False, verbose=False)
            except torch.onnx.errors.OnnxExporterError as error:
                raise InvalidArgumentError(
                    f"the model cannot be written as ONNX: {shorten(_root_cause(error))}"
                ) from error
            assert program is not None
            _drop_zero_biases(program.model)
            # By default torch would multiply factors out to weights of up to 512×512 entries.
            optimizer.optimize(program.model, output_size_limit=_MAX_FOLDED)
            # Torch records the lines of source behind every node, with the paths of this machine.
            passes.ClearMetadataAndDocStringPass()(program.model)
        with _write_errors(target):
            program.save(folder / target.name)
            onnx.checker.check_model(str(folder / target.name))
            size = _move_files(folder, target)
    if obstacle is not None:
        warnings.warn(f"{target} takes only the example's batch size: {obstacle}", stacklevel=2)
    return OnnxFile(target, size, any_batch=obstacle is None)


def as_tuple(inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the positional arguments of a forward pass."""
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def import_extra(name: str) -> Any:
    """Import a package of the extra ``export``, or name it in a `TensorPressError`."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise TensorPressError(
            f"ONNX files need the package {package}: pip install 'tensorpress[export]'"
        ) from error


def run_on_inputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Run a model and return the tensors of its output, in the order of the file's outputs.

    Raises
    ------
    InvalidArgumentError
        If the model does not run on the inputs.
    """
    try:
        output = model(*inputs)
    except Exception as error:  # a user's model may raise anything
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise InvalidArgumentError(
            f"the model does not run on inputs of shapes {shapes}: {shorten(error)}"
        ) from error
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _trace(
    model: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[torch.export.ExportedProgram, str | None]:
    """Return the exported program, and the reason if its batch size is fixed.

    Torch treats an axis of size 1 as one that always has this size: such a batch is doubled.
    """
    size = inputs[0].shape[0] if inputs and inputs[0].ndim else None
    has_batch = [bool(x.ndim) and x.shape[0] == size for x in inputs]
    examples = tuple(
        torch.cat([x, x]) if batched and size == 1 else x
        for x, batched in zip(inputs, has_batch, strict=True)
    )
    shapes: Any = ShapesCollection()  # type: ignore[no-untyped-call]
    batch = torch.export.Dim("batch")
    for x, batched in zip(examples, has_batch, strict=True):
        if batched:
            shapes[x] = {0: batch}
    with _silence():
        try:
            return torch.export.export(model, examples, dynamic_shapes=shapes, strict=False), None
        except Exception as error:  # torch raises many classes for models that it cannot trace
            obstacle = shorten(error)
        try:
            return torch.export.export(model, inputs, strict=False), obstacle
        except Exception as error:
            raise InvalidArgumentError(
                f"torch cannot export this model: {shorten(error)}"
            ) from error


def _drop_zero_biases(model: Any) -> None:
    """Drop the zeros that torch's exporter adds as the bias of a Conv3d without one.

    They have two axes in place of one (onnxscript 0.7), and runtimes refuse them.
    """
    for node in model.graph:
        bias = node.inputs[2] if node.op_type == "Conv" and len(node.inputs) > 2 else None
        producer = None if bias is None else bias.producer()
        if producer is not None and producer.op_type == "Expand":
            node.resize_inputs(2)


def shorten(error: BaseException) -> str:
    """Return the most informative line of a long message: its first bullet, or its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    points = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    return (points or lines or [type(error).__name__])[0]


def _root_cause(error: BaseException) -> BaseException:
    """Return the first error of a chain."""
    return error if error.__cause__ is None else _root_cause(error.__cause__)


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the exporters' own warnings and log messages in the block."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _temporary_folder(target: Path) -> Iterator[Path]:
    """Create a folder beside a file for the length of the block."""
    with _write_errors(target):
        folder = tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _write_errors(target: Path) -> Iterator[None]:
    """Raise an `InvalidArgumentError` with the file's name for an `OSError` in the block."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InvalidArgumentError(f"{target} cannot be written: {reason}") from error


def _move_files(folder: Path, target: Path) -> int:
    """Move the files of a folder beside ``target``, ``target`` last; return their bytes."""
    files = sorted(folder.iterdir(), key=lambda file: file.name == target.name)
    size = sum(file.stat().st_size for file in files)
    for file in files:
        file.replace(target.with_name(file.name))
    return size
