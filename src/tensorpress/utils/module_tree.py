"""Modules and parameters within a model: replacing them, and counting where they are shared."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class ModuleTree:
    """The parents of all modules of a model, at the time of construction.

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
        """Replace a module wherever it is used and return the model, which may be the new one."""
        for parent, key in self._parents.get(id(old), []):
            parent._modules[key] = new
        if old is self._model:
            self._model = new
        return self._model


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model in torch.compile, DataParallel and DistributedDataParallel, or itself.

    Examples
    --------
    >>> unwrap(nn.DataParallel(nn.ReLU()))
    ReLU()
    """
    while True:
        compiled = model._modules.get("_orig_mod")
        if compiled is not None:
            model = compiled
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def count_references(model: nn.Module) -> Counter[int]:
    """Return the number of modules that have each parameter and buffer, by its `id`.

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
    """Yield a model with a layer replaced wherever it is used, and restore the layer afterwards.

    The yielded model is ``model`` itself, or ``new`` if the model is the layer.

    Parameters
    ----------
    model : nn.Module
        The model.
    layer : nn.Module
        The layer to replace.
    new : nn.Module
        The layer in its place.

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
