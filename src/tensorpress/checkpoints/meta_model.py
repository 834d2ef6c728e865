"""What of a model a checkpoint holds, by name, and how values get into it."""

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.planning.plan_from_model import plan_from_model


def tied_names(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of every tensor of a model's state, by the first of them.

    Raises
    ------
    InvalidArgumentError
        If a module has state other than tensors.

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
            raise InvalidArgumentError(f"{name!r} is state other than a tensor, which is not kept")
        groups.setdefault(id(tensor), []).append(name)
    return {names[0]: names for names in groups.values()}


def fill_parameters(
    model: nn.Module, names: Mapping[str, str], read: Callable[[str], Tensor]
) -> None:
    """Replace the tensors of a model's state; those that are tied stay so.

    Parameters
    ----------
    model : nn.Module
        May be on the meta device.
    names : mapping of str to str
        The first name of every tensor, to the name that ``read`` takes.
    read : callable
        From a name to values, of any type and device but of the same shape.
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
    """Raise a `ModelMismatchError` unless stored tensors have the shapes of a model's.

    Parameters
    ----------
    model : nn.Module
        May be on the meta device.
    names : mapping of str to str
        Names in the model's state to names in the files.
    files : TensorFiles
        What is stored.
    """
    state = model.state_dict(keep_vars=True)
    for name, held in names.items():
        found, expected = files.tensors[held], state[name]
        if found.shape != tuple(expected.shape):
            raise ModelMismatchError(
                f"{files.folder}: {held!r} has shape {found.shape}, the model expects "
                f"{tuple(expected.shape)}"
            )
        if found.dtype.is_floating_point != expected.dtype.is_floating_point:
            raise ModelMismatchError(
                f"{files.folder}: {held!r} is {found.dtype}, the model expects {expected.dtype}"
            )


def to_meta(model: nn.Module) -> nn.Module:
    """Return a copy of a dense model with its parameters on the meta device, tied ones still tied.

    Raises
    ------
    ModelMismatchError
        If the model is pressed.
    InvalidArgumentError
        If a parameter has no shape yet.
    """
    if plan_from_model(model).layers:
        raise ModelMismatchError("the model given is pressed: give a dense one")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InvalidArgumentError(f"{name!r} of the model has no shape yet: run it once")
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return deepcopy(model, empty)
