"""Modules and parameters within a model: how many places share one, and replacing them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class Holders:
    """The places of a model's modules, as they were when this was made.

    Examples
    --------
    >>> layer = nn.ReLU()
    >>> model = nn.Sequential(layer, nn.Sequential(layer))
    >>> Holders(model).replace(layer, nn.Tanh())
    Sequential(
      (0): Tanh()
      (1): Sequential(
        (0): Tanh()
      )
    )
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._places: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for key, child in module._modules.items():
                self._places.setdefault(id(child), []).append((module, key))

    def replace(self, old: nn.Module, new: nn.Module) -> nn.Module:
        """Put a module in the place of another and return the model, which may be the new one."""
        for parent, key in self._places.get(id(old), []):
            parent._modules[key] = new
        if old is self._model:
            self._model = new
        return self._model


def count_references(model: nn.Module) -> Counter[int]:
    """Return how many modules hold each parameter and buffer, by its `id`.

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
    """Yield a model with a layer replaced wherever it is held, and put the layer back at the end.

    What is yielded is ``model`` itself, or ``new`` where the model is the layer.

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
