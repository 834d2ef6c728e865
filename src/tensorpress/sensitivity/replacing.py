"""A model with one of its layers replaced for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def replaced(model: nn.Module, layer: nn.Module, new: nn.Module) -> Iterator[nn.Module]:
    """Yield a model with a layer replaced wherever it is held, and put the layer back at the end.

    What is yielded is ``model`` itself, or ``new`` where the model is the layer.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    >>> with replaced(net, net[0], nn.Identity()) as changed:
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
