"""Runtimes that a model can be timed in: torch itself, or another that runs its ONNX file."""

import io
import tempfile
import warnings
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tensorpress.errors import InvalidArgumentError, TensorPressError
from tensorpress.measure.cost import evaluation_mode
from tensorpress.measure.model_inputs import ExampleInputs, ModelInputs

Runtime = Literal["torch", "onnxruntime"]


def in_runtime(model: nn.Module, inputs: ExampleInputs, runtime: Runtime) -> nn.Module:
    """Return a model as a runtime runs it, called as the model itself.

    Parameters
    ----------
    model : nn.Module
        The model, in eval mode from here on.
    inputs : Tensor, sequence or mapping
        Arguments of one forward pass, whose shapes are the only ones that the result takes.
    runtime : {"torch", "onnxruntime"}
        "torch" is the model itself.

    Raises
    ------
    InvalidArgumentError
        If torch cannot export the model, or the model is not on the CPU.
    TensorPressError
        If the packages of ``pip install tensorpress[export]`` are not installed.

    Examples
    --------
    >>> layer, x = nn.Linear(3, 2), torch.ones(4, 3)
    >>> [outputs] = in_runtime(layer, x, "onnxruntime")(x)
    >>> torch.allclose(torch.from_numpy(outputs), layer(x), atol=1e-6)
    True
    """
    return model if runtime == "torch" else OnnxRuntimeModel(model, ModelInputs.parse(inputs))


class OnnxRuntimeModel(nn.Module):
    """A model in onnxruntime, on the CPU, with torch's present number of threads.

    Parameters
    ----------
    model : nn.Module
        The model.
    inputs : ModelInputs
        Arguments of one forward pass.
    """

    def __init__(self, model: nn.Module, inputs: ModelInputs) -> None:
        super().__init__()
        try:
            onnxruntime = import_module("onnxruntime")
        except ImportError as error:
            raise TensorPressError(
                "a latency in onnxruntime needs this package: pip install 'tensorpress[export]'"
            ) from error
        if any(x.device.type != "cpu" for x in inputs.tensors):
            raise InvalidArgumentError("a latency in onnxruntime is measured on the CPU")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        self._names = [f"input_{number}" for number in range(len(inputs.tensors))]
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/model.onnx"
            _export(model, inputs, self._names, path)
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        # The file has no inputs that change nothing.
        self._used = {value.name for value in self._session.get_inputs()}

    def forward(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Return the outputs as arrays, in the order of the model's."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        arrays = {n: x.detach().numpy() for n, x in zip(self._names, tensors, strict=True)}
        return list(self._session.run(None, {n: x for n, x in arrays.items() if n in self._used}))


class _FlatArguments(nn.Module):
    """A model that takes the Tensors of its arguments by position, and nothing else.

    Parameters
    ----------
    model : nn.Module
        The model.
    inputs : ModelInputs
        Its arguments, of which all that are no Tensors stay as they are.
    """

    def __init__(self, model: nn.Module, inputs: ModelInputs) -> None:
        super().__init__()
        self.model, self._inputs = model, inputs

    def forward(self, *tensors: Tensor) -> Any:
        """Return what the model returns."""
        rest = iter(tensors)
        return self._inputs.map(lambda _: next(rest)).run(self.model)


def _export(model: nn.Module, inputs: ModelInputs, names: list[str], path: str) -> None:
    """Write the ONNX file of a model.

    The exporter that traces takes a seventh of the time of the other, which matters because a
    budget of latency exports hundreds of layers; the other takes models that it does not.
    """
    flat = _FlatArguments(model, inputs)
    with evaluation_mode(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dynamo in (False, True):
            try:
                with redirect_stdout(io.StringIO()):
                    torch.onnx.export(
                        flat, tuple(inputs.tensors), path, input_names=names, dynamo=dynamo
                    )
                return
            except Exception as error:  # of the exporters, whose errors have no common class
                failure = error
    reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
    raise InvalidArgumentError(
        f"a {type(model).__name__} cannot be exported to onnxruntime: {reason}"
    ) from failure
