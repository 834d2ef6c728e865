"""Replacing modules wherever a model holds them."""

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
