"""Runtimes in which models can be timed: torch, or another one with an ONNX file."""

import io
import tempfile
import warnings
from abc import ABC, abstractmethod
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any, ClassVar, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tensorpress.errors import InvalidArgumentError, TensorPressError, first_line
from tensorpress.measure.cost import evaluation_mode
from tensorpress.measure.model_inputs import ExampleInputs, ModelInputs

Runtime = Literal["torch", "onnxruntime", "openvino"]


def in_runtime(model: nn.Module, inputs: ExampleInputs, runtime: Runtime) -> nn.Module:
    """Return a model in a runtime, to be called like the model itself.

    Parameters
    ----------
    model : nn.Module
        The model, in eval mode.
    inputs : Tensor, sequence or mapping
        Arguments of one forward pass; the result accepts only their shapes.
    runtime : {"torch", "onnxruntime", "openvino"}
        "torch" is the model itself.

    Raises
    ------
    InvalidArgumentError
        If torch cannot export the model, the runtime cannot run it, or it is not on the CPU.
    TensorPressError
        If packages of ``pip install tensorpress[export]`` or ``tensorpress[openvino]`` are missing.

    Examples
    --------
    >>> layer, x = nn.Linear(3, 2), torch.ones(4, 3)
    >>> [outputs] = in_runtime(layer, x, "onnxruntime")(x)
    >>> torch.allclose(torch.from_numpy(outputs), layer(x), atol=1e-6)
    True
    """
    if runtime == "torch":
        return model
    exported = OpenVinoModel if runtime == "openvino" else OnnxRuntimeModel
    return exported(model, ModelInputs.parse(inputs))


class _ExportedModel(nn.Module, ABC):
    """A model in another runtime on the CPU, with torch's current number of threads.

    Parameters
    ----------
    model : nn.Module
        The model.
    inputs : ModelInputs
        Arguments of one forward pass.
    """

    runtime: ClassVar[str]
    extra: ClassVar[str]

    def __init__(self, model: nn.Module, inputs: ModelInputs) -> None:
        super().__init__()
        try:
            package = import_module(self.runtime)
        except ImportError as error:
            raise TensorPressError(
                f"latency in {self.runtime} needs that package: "
                f"pip install 'tensorpress[{self.extra}]'"
            ) from error
        if any(x.device.type != "cpu" for x in inputs.tensors):
            raise InvalidArgumentError(f"latency in {self.runtime} can only be measured on the CPU")
        self._names = [f"input_{number}" for number in range(len(inputs.tensors))]
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/model.onnx"
            _export(model, inputs, self._names, path)
            try:
                self._used = self._load(package, path)
            except Exception as error:  # runtimes raise errors of many classes
                raise InvalidArgumentError(
                    f"a {type(model).__name__} cannot be run by {self.runtime}: {first_line(error)}"
                ) from error

    def forward(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Return the outputs as arrays in the model's order."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        arrays = {n: x.detach().numpy() for n, x in zip(self._names, tensors, strict=True)}
        # Inputs that have no effect are not in the file.
        return self._run({name: x for name, x in arrays.items() if name in self._used})

    @abstractmethod
    def _load(self, package: Any, path: str) -> set[str]:
        """Load the file, and return the names of its inputs."""

    @abstractmethod
    def _run(self, arrays: dict[str, Any]) -> list[Any]:
        """Return the outputs for inputs by name."""


class OnnxRuntimeModel(_ExportedModel):
    """A model in onnxruntime."""

    runtime = "onnxruntime"
    extra = "export"

    def _load(self, package: Any, path: str) -> set[str]:
        options = package.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        self._session = package.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return {value.name for value in self._session.get_inputs()}

    def _run(self, arrays: dict[str, Any]) -> list[Any]:
        return list(self._session.run(None, arrays))


class OpenVinoModel(_ExportedModel):
    """A model in OpenVINO, in the precision of its weights."""

    runtime = extra = "openvino"

    def _load(self, package: Any, path: str) -> set[str]:
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            # Its default on processors with bfloat16 units is bfloat16.
            "EXECUTION_MODE_HINT": "ACCURACY",
        }
        compiled = package.compile_model(path, "CPU", settings)
        self._request = compiled.create_infer_request()
        return {port.any_name for port in compiled.inputs}

    def _run(self, arrays: dict[str, Any]) -> list[Any]:
        results = self._request.infer(arrays, share_inputs=True)
        return [results[port] for port in results]


class _FlatArguments(nn.Module):
    """A model that takes only the Tensors of its arguments, by position.

    Parameters
    ----------
    model : nn.Module
        The model.
    inputs : ModelInputs
        Its arguments; all but the Tensors are fixed.
    """

    def __init__(self, model: nn.Module, inputs: ModelInputs) -> None:
        super().__init__()
        self.model, self._inputs = model, inputs

    def forward(self, *tensors: Tensor) -> Any:
        """Return the outputs of the model."""
        rest = iter(tensors)
        return self._inputs.map(lambda _: next(rest)).run(self.model)


def _export(model: nn.Module, inputs: ModelInputs, names: list[str], path: str) -> None:
    """Write the ONNX file of a model.

    The tracing exporter needs a seventh of the time, which matters because a latency budget exports
    hundreds of layers; the other exporter supports more models.
    """
    flat = _FlatArguments(model, inputs)
    with evaluation_mode(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dynamo in (False, True):
            try:
                # Where tracing fails, torch 2.13 prints the graph in spite of verbose=False.
                silent = patch.object(torch._C, "_jit_onnx_log", lambda *_: None, create=True)
                with redirect_stdout(io.StringIO()), silent:
                    torch.onnx.export(
                        flat, tuple(inputs.tensors), path, input_names=names, dynamo=dynamo
                    )
                return
            except Exception as error:  # exporters raise errors of many classes
                failure = error
    raise InvalidArgumentError(
        f"a {type(model).__name__} cannot be exported to ONNX: {first_line(failure)}"
    ) from failure
