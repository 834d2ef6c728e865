"""Dynamic axes: the axes of a model's inputs that may have any size, in torch.export's format."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.dynamic_shapes import ShapesCollection
from torch.utils._pytree import tree_map

from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.model_inputs import ModelInputs

BATCH = "batch"


@dataclass(frozen=True)
class DynamicInputs:
    """Example inputs and their dynamic axes.

    Attributes
    ----------
    inputs : ModelInputs
        The inputs. Dynamic axes have a size of at least 2, because torch assumes that a size of 1
        is fixed.
    shapes : mapping of str to Any
        The argument ``dynamic_shapes`` of `torch.export.export`.
    names : list of dict
        For every Tensor, the names of axes that the user named.
    """

    inputs: ModelInputs
    shapes: Mapping[str, Any]
    names: list[dict[int, str]]


def bind_arguments(model: nn.Module, inputs: ModelInputs) -> ModelInputs:
    """Return inputs in the order of the model's arguments, as in the file."""
    bound = _bind(model, inputs)
    return ModelInputs(bound.args, bound.kwargs)


def batch_shapes(model: nn.Module, inputs: ModelInputs) -> dict[str, Any]:
    """Return shapes in which the first axis is dynamic, if its size is that of the batch."""
    batch = torch.export.Dim(BATCH)

    def axes(x: Any) -> dict[int, Any] | None:
        if isinstance(x, Tensor) and x.ndim and len(x) == inputs.batch:
            return {0: batch}
        return None

    return {name: tree_map(axes, value) for name, value in _arguments(_bind(model, inputs)).items()}


def prepare(model: nn.Module, inputs: ModelInputs, shapes: Any) -> DynamicInputs:
    """Return inputs and shapes for torch from shapes in which axes may be named.

    Parameters
    ----------
    model : nn.Module
        The model.
    inputs : ModelInputs
        Example inputs.
    shapes : mapping, sequence or ShapesCollection
        The argument ``dynamic_shapes`` of `torch.export.export`. A string instead of a
        `torch.export.Dim` is the name of a dynamic axis.

    Raises
    ------
    InvalidArgumentError
        If an argument or axis does not exist.

    Examples
    --------
    >>> net = nn.Conv1d(3, 4, 5)
    >>> result = prepare(net, ModelInputs.parse(torch.zeros(1, 3, 9)), [{0: "batch", 2: "length"}])
    >>> str(result.inputs), result.names
    ('(2, 3, 9) torch.float32', [{0: 'batch', 2: 'length'}])
    """
    bound = _bind(model, inputs)
    arguments = _arguments(bound)
    if isinstance(shapes, ShapesCollection):
        shapes = shapes.dynamic_shapes(model, inputs.positional, dict(inputs.named))  # type: ignore[no-untyped-call]
    if not isinstance(shapes, Mapping):
        shapes = dict(zip(arguments, shapes, strict=False))
    unknown = sorted(set(shapes) - set(arguments))
    if unknown:
        raise InvalidArgumentError(
            f"dynamic_shapes has unknown arguments {', '.join(map(repr, unknown))}: the model has "
            f"{', '.join(map(repr, arguments))}"
        )
    names: list[dict[int, str]] = []
    converted = {}
    for name, value in arguments.items():
        changed, converted[name] = _prepare(value, shapes.get(name), names)
        if name in bound.arguments:
            bound.arguments[name] = changed
        else:
            bound.arguments[_keywords(bound)][name] = changed
    return DynamicInputs(ModelInputs(bound.args, bound.kwargs), converted, names)


def _prepare(value: Any, shape: Any, names: list[dict[int, str]]) -> tuple[Any, Any]:
    """Return an argument and its shape for torch, and append the names of axes."""
    if isinstance(value, Tensor):
        return _prepare_tensor(value, shape, names)
    if isinstance(value, Mapping):
        shape = shape or {}
        pairs = {key: _prepare(item, shape.get(key), names) for key, item in value.items()}
        return {key: x for key, (x, _) in pairs.items()}, {key: s for key, (_, s) in pairs.items()}
    if isinstance(value, list | tuple):
        shape = shape or [None] * len(value)
        items = [_prepare(item, part, names) for item, part in zip(value, shape, strict=True)]
        kind = type(value)
        return kind([x for x, _ in items]), kind([s for _, s in items])
    return value, None


def _prepare_tensor(x: Tensor, shape: Any, names: list[dict[int, str]]) -> tuple[Tensor, Any]:
    axes = dict(shape if isinstance(shape, Mapping) else enumerate(shape or ()))
    names.append({axis: size for axis, size in axes.items() if isinstance(size, str)})
    for axis, size in axes.items():
        if not isinstance(axis, int) or not 0 <= axis < x.ndim:
            raise InvalidArgumentError(
                f"dynamic_shapes has axis {axis!r} for an input of shape {tuple(x.shape)}"
            )
        if size is None or isinstance(size, int) or size is torch.export.Dim.STATIC:
            continue
        if isinstance(size, str):
            axes[axis] = torch.export.Dim.DYNAMIC
        if x.shape[axis] == 1:
            x = torch.cat([x, x], axis)
    return x, axes or None


def _bind(model: nn.Module, inputs: ModelInputs) -> inspect.BoundArguments:
    try:
        return inspect.signature(model.forward).bind(*inputs.positional, **inputs.named)
    except TypeError as error:
        raise InvalidArgumentError(
            f"the model does not accept the inputs [{inputs}]: {error}"
        ) from None


def _keywords(bound: inspect.BoundArguments) -> str:
    """Return the name of the argument for arbitrary keywords, such as ``kwargs``, or ""."""
    kinds = bound.signature.parameters.values()
    return next((p.name for p in kinds if p.kind is inspect.Parameter.VAR_KEYWORD), "")


def _arguments(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Return the arguments by their names in torch.export."""
    arguments = dict(bound.arguments)
    others: dict[str, Any] = arguments.pop(_keywords(bound), {})
    return arguments | others
