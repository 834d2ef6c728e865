"""Writing models as ONNX files, and checking what such a file computes."""

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
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.export.dynamic_shapes import ShapesCollection
from torch.utils._pytree import tree_leaves

from tensorpress.errors import (
    CorruptFileError,
    DataNotFoundError,
    InvalidArgumentError,
    ModelMismatchError,
    TensorPressError,
    unknown_name,
)
from tensorpress.measure.cost import evaluation_mode
from tensorpress.press.press import materialize
from tensorpress.schemes.parametrization import factorized_weight

Factors = Literal["materialize", "keep"]

FOLDED = 64
"""Most entries by which a constant that is computed before it is written may take more room."""


@dataclass(frozen=True)
class OnnxFile:
    """A written ONNX file.

    Attributes
    ----------
    path : Path
        The file; what of it is beyond 2 GB lies beside it in a file of the same name and ``.data``.
    bytes : int
        Of all of it.
    any_batch : bool
        Whether it runs on batches of any size, or only on such as the example.
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

    The first axis of the inputs may then have any size. Where the model itself fixes it, the file
    has the example's, which a warning says with the reason. The file is checked by onnx before it
    takes the place of what is at ``path``.

    Parameters
    ----------
    model : nn.Module
        Written as it computes in eval mode; left untouched.
    example_inputs : Tensor or sequence of Tensor
        Positional arguments of one forward pass, the first axis of each being the batch.
    path : path
        Where to.
    factors : {"materialize", "keep"}
        Whether a weight that is rebuilt from factors (ADA-Tucker, tt_weight) is written dense or
        as its factors and the products that rebuild it: a small file, whose weights a runtime
        rebuilds when it loads it. Chains of layers and TT layers stay what they are either way.

    Raises
    ------
    InvalidArgumentError
        For unknown ``factors``, inputs that the model does not run on, a model that torch cannot
        export, or a path that cannot be written.
    TensorPressError
        Where the packages of ``pip install tensorpress[export]`` are missing.

    Examples
    --------
    >>> import tensorpress as tp
    >>> folder = tempfile.mkdtemp()
    >>> pressed = tp.press_layer(nn.Linear(64, 64), "tt_weight", 2)
    >>> dense = export_onnx(pressed, torch.ones(3, 64), f"{folder}/dense.onnx")
    >>> small = export_onnx(pressed, torch.ones(3, 64), f"{folder}/small.onnx", factors="keep")
    >>> small.any_batch, dense.bytes - small.bytes > 3 * 64 * 64
    (True, True)
    >>> check_onnx(pressed, torch.ones(5, 64), small.path) < 1e-4
    True
    """
    if factors not in get_args(Factors):
        raise unknown_name("choice of factors", factors, get_args(Factors))
    onnx, optimizer = _import_extra("onnx"), _import_extra("onnxscript.optimizer")
    passes = _import_extra("onnx_ir.passes.common")
    inputs = _as_tuple(example_inputs)
    if factors == "materialize" and any(map(factorized_weight, model.modules())):
        model = materialize(model)
    target = Path(path)
    with _temporary_folder(target) as folder:
        with evaluation_mode(model), torch.no_grad():
            _check_runs(model, inputs)
            traced, obstacle = _trace(model, inputs)
        with (
            _silence(),
            torch.no_grad(),
        ):  # attention is taken apart otherwise where it may be trained
            try:
                program = torch.onnx.export(traced, dynamo=True, optimize=False, verbose=False)
            except torch.onnx.errors.OnnxExporterError as error:
                raise InvalidArgumentError(
                    f"ONNX cannot say this model: {_shorten(_root_cause(error))}"
                ) from error
            assert program is not None
            _drop_made_up_biases(program.model)
            # By itself torch would multiply factors out to weights of up to 512×512 entries.
            optimizer.optimize(program.model, output_size_limit=FOLDED)
            # Torch notes down the lines of source behind every node, with this machine's paths.
            passes.ClearMetadataAndDocStringPass()(program.model)
        with _write_errors(target):
            program.save(folder / target.name)
            onnx.checker.check_model(str(folder / target.name))
            size = _move_files(folder, target)
    if obstacle is not None:
        warnings.warn(f"{target} takes only the example's batch size: {obstacle}", stacklevel=2)
    return OnnxFile(target, size, any_batch=obstacle is None)


def check_onnx(
    model: nn.Module, example_inputs: Tensor | Sequence[Tensor], path: str | os.PathLike[str]
) -> float:
    """Return how far a file in onnxruntime, on the CPU, is from the model that it was made from.

    Parameters
    ----------
    model : nn.Module
        Run in eval mode.
    example_inputs : Tensor or sequence of Tensor
        Positional arguments of one forward pass.
    path : path
        Of an ONNX file.

    Returns
    -------
    float
        The largest max|a − b| / max|b| of the outputs, b being the model's; infinite where one is
        not finite and the other is, or is another value.

    Raises
    ------
    DataNotFoundError, CorruptFileError
        Where there is no such file, or none that onnxruntime reads.
    ModelMismatchError
        Where the file takes other inputs or gives other outputs than the model.

    Examples
    --------
    >>> folder, net = tempfile.mkdtemp(), nn.Linear(6, 4)
    >>> file = export_onnx(net, torch.ones(2, 6), f"{folder}/net.onnx")
    >>> check_onnx(net, torch.randn(7, 6), file.path) < 1e-5
    True
    """
    runtime = _import_extra("onnxruntime")
    inputs = _as_tuple(example_inputs)
    if not Path(path).is_file():
        raise DataNotFoundError(f"there is no file {path}")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no other base
        raise CorruptFileError(
            f"{path} cannot be read by onnxruntime: {_shorten(error)}"
        ) from error
    with evaluation_mode(model), torch.no_grad():
        expected = _check_runs(model, inputs)
    names = [value.name for value in session.get_inputs()]
    if len(names) != len(inputs):
        raise ModelMismatchError(f"{path} takes {len(names)} inputs ({names}), not {len(inputs)}")
    values = {name: x.detach().cpu().numpy() for name, x in zip(names, inputs, strict=True)}
    try:
        outputs = [torch.as_tensor(value) for value in session.run(None, values)]
    except Exception as error:
        raise ModelMismatchError(f"{path} does not run on the inputs: {_shorten(error)}") from error
    if [one.shape for one in outputs] != [one.shape for one in expected]:
        raise ModelMismatchError(
            f"{path} gives outputs of shapes {[tuple(one.shape) for one in outputs]}, the model of "
            f"{[tuple(one.shape) for one in expected]}"
        )
    return max(map(relative_difference, outputs, expected), default=0.0)


def relative_difference(output: Tensor, expected: Tensor) -> float:
    """Return max|a − b| / max|b|, infinite where they differ in what is not finite.

    Examples
    --------
    >>> relative_difference(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 4.0]))
    0.25
    """
    a, b = output.detach().cpu().double(), expected.detach().cpu().double()
    finite = b.isfinite()
    if not torch.equal(a.isfinite(), finite):
        return float("inf")
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return float("inf")
    a, b = a[finite], b[finite]
    if not a.numel():
        return 0.0
    scale = float(b.abs().max())
    return float((a - b).abs().max()) / (scale or 1.0)


def _as_tuple(inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def _import_extra(name: str) -> Any:
    """Import one of the packages that export needs and nothing else does."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise TensorPressError(
            f"ONNX files need the package {package}: pip install 'tensorpress[export]'"
        ) from error


def _check_runs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the tensors of a model's output, in the order in which they become a file's."""
    try:
        output = model(*inputs)
    except Exception as error:  # whatever the user's own model raises
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise InvalidArgumentError(
            f"the model does not run on inputs of shapes {shapes}: {_shorten(error)}"
        ) from error
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _trace(
    model: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[torch.export.ExportedProgram, str | None]:
    """Return the exported program and why its batch is fixed, None where it is not.

    Torch takes an axis of size 1 for one that always has it: such a batch is doubled.
    """
    size = inputs[0].shape[0] if inputs and inputs[0].ndim else None
    batched = [bool(x.ndim) and x.shape[0] == size for x in inputs]
    twice = tuple(
        torch.cat([x, x]) if has and size == 1 else x
        for x, has in zip(inputs, batched, strict=True)
    )
    shapes: Any = ShapesCollection()  # type: ignore[no-untyped-call]
    batch = torch.export.Dim("batch")
    for x, has in zip(twice, batched, strict=True):
        if has:
            shapes[x] = {0: batch}
    with _silence():
        try:
            return torch.export.export(model, twice, dynamic_shapes=shapes, strict=False), None
        except Exception as error:  # torch has many classes for what it cannot trace
            obstacle = _shorten(error)
        try:
            return torch.export.export(model, inputs, strict=False), obstacle
        except Exception as error:
            raise InvalidArgumentError(
                f"torch cannot export this model: {_shorten(error)}"
            ) from error


def _drop_made_up_biases(model: Any) -> None:
    """Drop the zeros that torch's exporter adds as the bias of a Conv3d without one.

    They have two axes in place of one (onnxscript 0.7), and runtimes refuse them.
    """
    for node in model.graph:
        bias = node.inputs[2] if node.op_type == "Conv" and len(node.inputs) > 2 else None
        made = None if bias is None else bias.producer()
        if made is not None and made.op_type == "Expand":
            node.resize_inputs(2)


def _shorten(error: BaseException) -> str:
    """Return the line of a long message that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    points = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    return (points or lines or [type(error).__name__])[0]


def _root_cause(error: BaseException) -> BaseException:
    """Return the error behind those that only say where it was met."""
    return error if error.__cause__ is None else _root_cause(error.__cause__)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporters from warning about themselves."""
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
    """Yield a folder next to a file; it is removed at the end."""
    with _write_errors(target):
        folder = tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _write_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InvalidArgumentError(f"{target} cannot be written: {reason}") from error


def _move_files(folder: Path, target: Path) -> int:
    """Move the files of a folder beside ``target``, it last; return their bytes."""
    files = sorted(folder.iterdir(), key=lambda file: file.name == target.name)
    size = sum(file.stat().st_size for file in files)
    for file in files:
        file.replace(target.with_name(file.name))
    return size
