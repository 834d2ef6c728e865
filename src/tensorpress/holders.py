"""Who holds what in a model, where several may hold the same."""

from collections import Counter

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


def times_held(model: nn.Module) -> Counter[int]:
    """Return how many modules hold each parameter and buffer, by its `id`.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> times_held(nn.ModuleList([layer, layer]))[id(layer.weight)]  # one module, in two places
    1
    >>> other = nn.Linear(2, 2)
    >>> other.weight = layer.weight
    >>> times_held(nn.ModuleList([layer, other]))[id(layer.weight)]
    2
    """
    return Counter(
        id(tensor)
        for module in model.modules()
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    )
