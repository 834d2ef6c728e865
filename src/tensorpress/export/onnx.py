"""Export of models as ONNX files."""

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tensorpress.errors import (
    InvalidArgumentError,
    TensorPressError,
    first_line,
    unknown_name,
)
from tensorpress.export import Factors
from tensorpress.export.dynamic_shapes import batch_shapes, bind_arguments, prepare
from tensorpress.measure.cost import evaluation_mode
from tensorpress.measure.model_inputs import ExampleInputs, ModelInputs
from tensorpress.press.press import materialize
from tensorpress.schemes.parametrization import factorized_weight
from tensorpress.utils.atomic_files import check_writable, put_in_place
from tensorpress.utils.module_tree import unwrap

_MAX_FOLDED = 64  # entries up to which constants are folded


@dataclass(frozen=True)
class OnnxFile:
    """A written ONNX file.

    Attributes
    ----------
    path : Path
        The file. Weights beyond 2 GB are in a second file next to it, with the suffix ``.data``.
    bytes : int
        Size of both files together.
    any_batch : bool
        Whether the file accepts batches of any size, or only of the example's size.
    inputs : mapping of str to tuple
        The shape of every input by name; dynamic axes are strings.
    """

    path: Path
    bytes: int
    any_batch: bool
    inputs: Mapping[str, tuple[int | str, ...]]


def export_onnx(
    model: nn.Module,
    example_inputs: ExampleInputs,
    path: str | os.PathLike[str],
    *,
    factors: Factors = "materialize",
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    opset: int | None = None,
) -> OnnxFile:
    """Write a pressed or dense model as an ONNX file.

    By default only the first axis of the inputs, the batch, is dynamic. If the model itself fixes
    the batch size, the file accepts only that of the example, and a warning gives the reason. The
    onnx package checks the file before it replaces a file at ``path``.

    Parameters
    ----------
    model : nn.Module
        The model, which is exported in eval mode and does not change.
    example_inputs : Tensor, sequence or mapping
        Arguments of one forward pass: a single one, several by position, or by name. The first axis
        is the batch. Every Tensor becomes an input of the file, in the order of the model's
        arguments; all other values are fixed.
    path : path-like
        The file to write or replace.
    factors : {"materialize", "keep"}
        Whether weights that are rebuilt from factors (ADA-Tucker, tt_weight) are written as dense
        weights, or as factors and the products that rebuild them. The latter gives a small file,
        whose weights are rebuilt when a runtime loads it. Chains of layers and TT layers are
        written unchanged in both cases.
    dynamic_shapes : sequence or mapping, optional
        The dynamic axes, in the format of `torch.export.export`: for every argument a mapping from
        axes. Strings, as in ``{0: "batch", 2: "height"}``, are names of dynamic axes; a
        `torch.export.Dim` has bounds.
    input_names : sequence of str, optional
        Names of the file's inputs; by default those of the model's arguments.
    opset : int, optional
        Version of the ONNX operators; by default that of torch.

    Returns
    -------
    OnnxFile
        Path, size and inputs of the file.

    Raises
    ------
    InvalidArgumentError
        If ``factors`` is unknown, the model fails on the inputs, torch cannot export it with these
        axes and operators, or the file cannot be written.
    TensorPressError
        If packages of ``pip install tensorpress[export]`` are missing.

    Examples
    --------
    >>> import tensorpress as tp
    >>> folder = tempfile.mkdtemp()
    >>> pressed = tp.press_layer(nn.Linear(64, 64), "tt_weight", 2)
    >>> dense = export_onnx(pressed, torch.ones(3, 64), f"{folder}/dense.onnx")
    >>> small = export_onnx(pressed, torch.ones(3, 64), f"{folder}/small.onnx", factors="keep")
    >>> small.any_batch, dense.bytes - small.bytes > 3 * 64 * 64
    (True, True)

    >>> net, axes = nn.Conv2d(3, 4, 3, stride=2), {0: "batch", 2: "height", 3: "width"}
    >>> file = export_onnx(net, torch.ones(1, 3, 9, 9), f"{folder}/c.onnx", dynamic_shapes=[axes])
    >>> file.inputs
    {'input': ('batch', 3, 'height', 'width')}
    """
    if factors not in get_args(Factors):
        raise unknown_name("choice of factors", factors, get_args(Factors))
    onnx, optimizer = import_extra("onnx"), import_extra("onnxscript.optimizer")
    passes = import_extra("onnx_ir.passes.common")
    model, inputs = unwrap(model), ModelInputs.parse(example_inputs)
    inputs = bind_arguments(model, inputs)
    if input_names is not None and len(input_names) != len(inputs.tensors):
        raise InvalidArgumentError(
            f"expected {len(inputs.tensors)} input_names, one per input, got {len(input_names)}"
        )
    if factors == "materialize" and any(map(factorized_weight, model.modules())):
        model = materialize(model)
    target = check_writable(path)
    with _temporary_folder(target) as folder:
        with evaluation_mode(model), torch.no_grad():
            run_on_inputs(model, inputs)
            traced, names, obstacle = _trace(model, inputs, dynamic_shapes)
        # If gradients were enabled, the exporter would decompose attention.
        with _silence(), torch.no_grad():
            try:
                program = torch.onnx.export(
                    traced,
                    dynamo=True,
                    optimize=False,
                    verbose=False,
                    input_names=input_names,
                    opset_version=opset,
                    dynamic_shapes=tuple(names) if any(names) else None,
                )
            except (torch.onnx.errors.OnnxExporterError, ValueError) as error:
                raise InvalidArgumentError(
                    f"ONNX export failed: {first_line(_root_cause(error))}"
                ) from error
            assert program is not None
            _check_opset(program.model, opset)
            _drop_zero_biases(program.model)
            # By default torch would multiply factors to weights of up to 512×512 entries.
            optimizer.optimize(program.model, output_size_limit=_MAX_FOLDED)
            # Torch records the source lines of every node, with paths of this machine.
            passes.ClearMetadataAndDocStringPass()(program.model)
        with _write_errors(target):
            program.save(folder / target.name)
            onnx.checker.check_model(str(folder / target.name))
            size = _move_files(folder, target)
    if obstacle is not None:
        warnings.warn(f"{target} accepts only the example's batch size: {obstacle}", stacklevel=2)
    shapes = {str(value.name): _shape(value) for value in program.model.graph.inputs}
    first = next((shape for shape in shapes.values() if shape), ())
    return OnnxFile(Path(path), size, any(isinstance(axis, str) for axis in first[:1]), shapes)


def import_extra(name: str) -> Any:
    """Import a package of the extra ``export``; a `TensorPressError` names it if it is missing."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise TensorPressError(
            f"ONNX files need the package {package}: pip install 'tensorpress[export]'"
        ) from error


def run_on_inputs(model: nn.Module, inputs: ModelInputs) -> list[Tensor]:
    """Run a model, and return its output tensors in the order of the file's outputs.

    Raises
    ------
    InvalidArgumentError
        If the model fails on the inputs.
    """
    try:
        output = inputs.run(model)
    except Exception as error:  # a user's model may raise anything
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs.tensors)
        raise InvalidArgumentError(
            f"the model fails on inputs of shapes {shapes}: {first_line(error)}"
        ) from error
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _trace(
    model: nn.Module, inputs: ModelInputs, shapes: Any
) -> tuple[torch.export.ExportedProgram, list[dict[int, str]], str | None]:
    """Return the exported program, names of axes, and the reason if the batch size is fixed."""
    dynamic = prepare(model, inputs, batch_shapes(model, inputs) if shapes is None else shapes)
    with _silence():
        try:
            return _export(model, dynamic.inputs, dynamic.shapes), dynamic.names, None
        except Exception as error:  # torch raises errors of many classes
            obstacle = first_line(error)
            if shapes is not None:
                raise InvalidArgumentError(
                    f"torch cannot export this model with these dynamic_shapes: {obstacle}"
                ) from error
        try:
            return _export(model, inputs, None), [], obstacle
        except Exception as error:
            raise InvalidArgumentError(
                f"torch cannot export this model: {first_line(error)}"
            ) from error


def _export(model: nn.Module, inputs: ModelInputs, shapes: Any) -> torch.export.ExportedProgram:
    named = dict(inputs.named)
    return torch.export.export(model, inputs.positional, named, dynamic_shapes=shapes, strict=False)


def _check_opset(model: Any, opset: int | None) -> None:
    version = model.opset_imports[""]
    if opset is not None and version != opset:
        raise InvalidArgumentError(
            f"the model needs operators of version {version}, so it cannot be written with {opset}"
        )


def _shape(value: Any) -> tuple[int | str, ...]:
    """Return the shape of a file's input, with strings for dynamic axes."""
    return tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)


def _drop_zero_biases(model: Any) -> None:
    """Drop the zero bias that torch's exporter adds to a Conv3d without bias.

    It has two axes instead of one (onnxscript 0.7), which runtimes reject.
    """
    for node in model.graph:
        bias = node.inputs[2] if node.op_type == "Conv" and len(node.inputs) > 2 else None
        producer = None if bias is None else bias.producer()
        if producer is not None and producer.op_type == "Expand":
            node.resize_inputs(2)


def _root_cause(error: BaseException) -> BaseException:
    """Return the first error of a chain."""
    return error if error.__cause__ is None else _root_cause(error.__cause__)


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress warnings and log messages of the exporters."""
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
    """Create a temporary folder next to a file."""
    with _write_errors(target):
        folder = tempfile.mkdtemp(prefix=".onnx.", dir=target.parent)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _write_errors(target: Path) -> Iterator[None]:
    """Turn an `OSError` into an `InvalidArgumentError` that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InvalidArgumentError(f"{target} cannot be written: {reason}") from error


def _move_files(folder: Path, target: Path) -> int:
    """Move files next to ``target``, with ``target`` last, and return their total size."""
    files = sorted(folder.iterdir(), key=lambda file: file.name == target.name)
    size = sum(file.stat().st_size for file in files)
    for file in files:
        put_in_place(file, check_writable(target.with_name(file.name)))
    return size
