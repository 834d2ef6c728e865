"""Models on the meta device: the names of their tensors, and filling in values."""

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.planning.plan_from_model import plan_from_model


def tied_names(model: nn.Module) -> dict[str, list[str]]:
    """Return all names of every tensor in a model's state, by its first name.

    Raises
    ------
    InvalidArgumentError
        If a module's state has anything other than tensors.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    >>> model[1].weight = model[0].weight
    >>> tied_names(model)
    {'0.weight': ['0.weight', '1.weight'], '0.bias': ['0.bias']}
    """
    groups: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise InvalidArgumentError(
                f"{name!r} in the model's state is not a tensor and cannot be stored"
            )
        groups.setdefault(id(tensor), []).append(name)
    return {names[0]: names for names in groups.values()}


def fill_parameters(
    model: nn.Module, names: Mapping[str, str], read: Callable[[str], Tensor]
) -> None:
    """Replace the tensors in a model's state; tied tensors stay tied.

    Parameters
    ----------
    model : nn.Module
        The model, which may be on the meta device.
    names : mapping of str to str
        The name that ``read`` expects for every tensor, by its first name in the model.
    read : callable
        Function that returns the tensor of a name, of the same shape and any dtype and device.
    """
    groups, state = tied_names(model), model.state_dict(keep_vars=True)
    values: dict[str, Tensor] = {}
    for first, name in names.items():
        tensor = read(name)
        if isinstance(state[first], nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=state[first].requires_grad)
        values |= dict.fromkeys(groups[first], tensor)
    model.load_state_dict(values, strict=False, assign=True)


def check_fits(model: nn.Module, names: Mapping[str, str], files: TensorFiles) -> None:
    """Raise a `ModelMismatchError` if stored tensors do not fit a model.

    Parameters
    ----------
    model : nn.Module
        The model, which may be on the meta device.
    names : mapping of str to str
        The names of tensors in the files, by their names in the model's state.
    files : TensorFiles
        The stored tensors.
    """
    state = model.state_dict(keep_vars=True)
    for name, stored_name in names.items():
        stored, expected = files.tensors[stored_name], state[name]
        if stored.shape != tuple(expected.shape):
            raise ModelMismatchError(
                f"{files.folder}: {stored_name!r} has shape {stored.shape}, but the model expects "
                f"{tuple(expected.shape)}"
            )
        if stored.dtype.is_floating_point != expected.dtype.is_floating_point:
            raise ModelMismatchError(
                f"{files.folder}: {stored_name!r} is {stored.dtype}, but the model expects "
                f"{expected.dtype}"
            )


def to_meta(model: nn.Module) -> nn.Module:
    """Return a copy of a dense model with its parameters on the meta device; tied ones stay tied.

    Raises
    ------
    ModelMismatchError
        If the model is pressed.
    InvalidArgumentError
        If a parameter has no shape yet.
    """
    if plan_from_model(model).layers:
        raise ModelMismatchError("expected a dense model, got a pressed one")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InvalidArgumentError(
                f"parameter {name!r} has no shape yet: run the model once first"
            )
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return deepcopy(model, empty)
