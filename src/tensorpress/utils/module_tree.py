"""Modules and parameters in a model: names, copies, replacement and sharing."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError

ModuleType = TypeVar("ModuleType", bound=nn.Module)


class ModuleTree:
    """The parents of all modules in a model, at the time of construction.

    Parameters
    ----------
    model : nn.Module
        The model.

    Examples
    --------
    >>> layer = nn.ReLU()
    >>> model = nn.Sequential(layer, nn.Sequential(layer))
    >>> ModuleTree(model).replace(layer, nn.Tanh())
    Sequential(
      (0): Tanh()
      (1): Sequential(
        (0): Tanh()
      )
    )
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parents: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for key, child in module._modules.items():
                self._parents.setdefault(id(child), []).append((module, key))

    def replace(self, old: nn.Module, new: nn.Module) -> nn.Module:
        """Replace a module wherever it is used; return the model, which may be the new module."""
        for parent, key in self._parents.get(id(old), []):
            parent._modules[key] = new
        if old is self._model:
            self._model = new
        return self._model


def copy_model(model: ModuleType, shared: Iterable[Tensor] = ()) -> ModuleType:
    """Return a deep copy of a model.

    Attributes that cannot be copied, such as locks and open files, are shared with the model.
    Tensors that hooks have computed are copied without their graph.

    Parameters
    ----------
    model : nn.Module
        The model.
    shared : iterable of Tensor
        Parameters that the copy shares with the model.

    Examples
    --------
    >>> import threading
    >>> model = nn.Linear(2, 2)
    >>> model.lock = threading.Lock()
    >>> copy_model(model).lock is model.lock
    True
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    for value in _attributes(model):
        if isinstance(value, Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    try:
        return deepcopy(model, dict(memo))
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        modules = {id(module): module for module in model.modules()}
        tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        for value in _attributes(model):
            try:
                deepcopy(value, {**memo, **modules, **tensors})
            except Exception:  # an object's own __deepcopy__ may raise anything
                memo[id(value)] = value
        return deepcopy(model, memo)


def _attributes(model: nn.Module) -> Iterator[Any]:
    """Yield the values of all attributes besides parameters, buffers and modules."""
    plain = set(vars(nn.Module()))
    for module in model.modules():
        yield from (value for name, value in vars(module).items() if name not in plain)


def locate_weight(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module with the weight of a layer, and the name of the weight in it.

    The name of a layer is that of a module with a ``weight``, or that of any other parameter.

    Raises
    ------
    AttributeError
        If the model has neither a module nor a parameter of this name.

    Examples
    --------
    >>> model = nn.Sequential(nn.LSTM(3, 4))
    >>> locate_weight(model, "0"), locate_weight(model, "0.weight_hh_l0")
    ((LSTM(3, 4), 'weight'), (LSTM(3, 4), 'weight_hh_l0'))
    """
    parent, _, key = name.rpartition(".")
    module = model.get_submodule(parent)
    factors = module._modules.get("parametrizations")
    if key in module._parameters or (isinstance(factors, nn.ModuleDict) and key in factors):
        return module, key
    return model.get_submodule(name), "weight"


def weight_name(module: str, key: str) -> str:
    """Return the name of a parameter's layer; the inverse of `locate_weight`.

    Examples
    --------
    >>> weight_name("conv", "weight"), weight_name("lstm", "weight_hh_l0")
    ('conv', 'lstm.weight_hh_l0')
    """
    if key == "weight":
        return module
    return f"{module}.{key}" if module else key


def parameter_name(model: nn.Module, layer: str) -> str:
    """Return the full name of the weight of a layer; see `locate_weight`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.LSTM(3, 4))
    >>> parameter_name(model, "0"), parameter_name(model, "1.weight_hh_l0")
    ('0.weight', '1.weight_hh_l0')
    """
    parent = layer.rpartition(".")[0]
    if model.get_submodule(parent) is locate_weight(model, layer)[0] and layer:
        return layer
    return f"{layer}.weight" if layer else "weight"


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside torch.compile, DataParallel or DistributedDataParallel, or itself.

    Raises
    ------
    InvalidArgumentError
        If it is not a module, or has a torch.jit module.

    Examples
    --------
    >>> unwrap(nn.DataParallel(nn.ReLU()))
    ReLU()
    """
    if not isinstance(model, nn.Module):
        name = getattr(model, "__name__", "")
        got = (
            f"the class {name}: pass {name}()" if isinstance(model, type) else type(model).__name__
        )
        raise InvalidArgumentError(f"expected a torch.nn.Module, got {got}")
    refuse_scripts(model)
    while True:
        compiled = model._modules.get("_orig_mod")
        if compiled is not None:
            model = compiled
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def refuse_scripts(model: nn.Module) -> None:
    """Raise an error for a model with torch.jit modules, which cannot be changed.

    Raises
    ------
    InvalidArgumentError
        If there is one; the message names it.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"layer {name!r}" if name else "the model"
            raise InvalidArgumentError(
                f"{what} is compiled by torch.jit, so its layers cannot be replaced: pass the "
                "module from before torch.jit.script or torch.jit.trace"
            )


def count_references(model: nn.Module) -> Counter[int]:
    """Return the number of modules that have each parameter and buffer, by `id`.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> count_references(nn.ModuleList([layer, layer]))[id(layer.weight)]
    1
    >>> other = nn.Linear(2, 2)
    >>> other.weight = layer.weight
    >>> count_references(nn.ModuleList([layer, other]))[id(layer.weight)]
    2
    """
    return Counter(
        id(tensor)
        for module in model.modules()
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    )


@contextmanager
def replace_layer(model: nn.Module, layer: nn.Module, new: nn.Module) -> Iterator[nn.Module]:
    """Replace a layer wherever it is used in a block, and restore it afterwards.

    The model is changed in place; if it is itself the layer, ``new`` is yielded.

    Parameters
    ----------
    model : nn.Module
        The model.
    layer : nn.Module
        The layer to replace.
    new : nn.Module
        The new layer.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    >>> with replace_layer(net, net[0], nn.Identity()) as changed:
    ...     print(changed[0])
    Identity()
    >>> net[0]
    Linear(in_features=3, out_features=2, bias=True)
    """
    places = [
        (module, key)
        for module in model.modules()
        for key, child in module._modules.items()
        if child is layer
    ]
    try:
        for module, key in places:
            module._modules[key] = new
        yield new if layer is model else model
    finally:
        for module, key in places:
            module._modules[key] = layer
