"""Comparison of an ONNX file with the model that it was written from."""

import os

import torch
from torch import Tensor, nn

from tensorpress.errors import CorruptFileError, ModelMismatchError, first_line
from tensorpress.export.dynamic_shapes import bind_arguments
from tensorpress.export.onnx import import_extra, run_on_inputs
from tensorpress.measure.cost import evaluation_mode
from tensorpress.measure.model_inputs import ExampleInputs, ModelInputs
from tensorpress.utils.module_tree import unwrap
from tensorpress.utils.paths import check_file


def check_onnx(
    model: nn.Module, example_inputs: ExampleInputs, path: str | os.PathLike[str]
) -> float:
    """Return the relative difference between the outputs of an ONNX file and its model.

    The file runs in onnxruntime on the CPU.

    Parameters
    ----------
    model : nn.Module
        The model that the file was written from; it runs in eval mode.
    example_inputs : Tensor, sequence or mapping
        Arguments of one forward pass.
    path : path-like
        The ONNX file.

    Returns
    -------
    float
        The largest max|a − b| / max|b| over all outputs, with a from the file and b from the model;
        infinite if NaN or infinite values differ.

    Raises
    ------
    DataNotFoundError
        If there is no such file.
    CorruptFileError
        If onnxruntime cannot read the file.
    ModelMismatchError
        If the file has other inputs or outputs than the model.

    Examples
    --------
    >>> import tempfile
    >>> import tensorpress as tp
    >>> folder, net = tempfile.mkdtemp(), nn.Linear(6, 4)
    >>> file = tp.export_onnx(net, torch.ones(2, 6), f"{folder}/net.onnx")
    >>> check_onnx(net, torch.randn(7, 6), file.path) < 1e-5
    True
    """
    runtime = import_extra("onnxruntime")
    model = unwrap(model)
    inputs = bind_arguments(model, ModelInputs.parse(example_inputs))
    tensors = inputs.tensors
    check_file(path, "ONNX file")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base class
        raise CorruptFileError(
            f"{path} cannot be read by onnxruntime: {first_line(error)}"
        ) from error
    with evaluation_mode(model), torch.no_grad():
        expected = run_on_inputs(model, inputs)
    names = [value.name for value in session.get_inputs()]
    if len(names) != len(tensors):
        raise ModelMismatchError(
            f"{path} has {len(names)} inputs ({names}), expected {len(tensors)}"
        )
    values = {name: x.detach().cpu().numpy() for name, x in zip(names, tensors, strict=True)}
    try:
        outputs = [torch.as_tensor(value) for value in session.run(None, values)]
    except Exception as error:
        raise ModelMismatchError(f"{path} fails on the inputs: {first_line(error)}") from error
    shapes, expected_shapes = ([tuple(y.shape) for y in ys] for ys in (outputs, expected))
    if shapes != expected_shapes:
        raise ModelMismatchError(
            f"{path} returns outputs of shapes {shapes}, but the model {expected_shapes}"
        )
    return max(map(relative_difference, outputs, expected), default=0.0)


def relative_difference(output: Tensor, expected: Tensor) -> float:
    """Return max|a − b| / max|b| of an output a and the expected b.

    It is infinite if NaN or infinite values differ.

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
