"""Finding the layers whose weight other modules compute with."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from tensorpress.schemes.deferred import deferred


@contextmanager
def noting_readers(layers: Mapping[str, nn.Module]) -> Iterator[set[str]]:
    """Note which layers have their weight used by others than themselves while a block runs.

    Such a layer cannot be replaced by others: its own forward pass is not what runs. Asking for
    the dtype of the weight is no use of it.

    Parameters
    ----------
    layers : mapping of str to nn.Module
        By their names, each with a weight.

    Yields
    ------
    set of str
        The names, filled while the block runs.

    Examples
    --------
    >>> import torch
    >>> tied = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    >>> with noting_readers(dict(tied.named_children())) as read:
    ...     _ = nn.functional.linear(tied[0](torch.ones(1, 3)), tied[1].weight)
    >>> read
    {'1'}
    """
    read: set[str] = set()
    kinds = {name: type(layer) for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.__class__ = _watched(kinds[name], partial(read.add, name))
        yield read
    finally:
        for name, layer in layers.items():
            layer.__class__ = kinds[name]


def _watched(kind: type[nn.Module], note: Callable[[], None]) -> type[nn.Module]:
    """Return a class of layer that tells when its weight is used outside its forward pass."""

    class Watched(kind):  # type: ignore[misc, valid-type]
        running = False

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            self.__dict__["running"] = True
            try:
                return super().__call__(*arguments, **options)
            finally:
                del self.__dict__["running"]

        def __getattr__(self, name: str) -> Any:
            value = super().__getattr__(name)
            if name != "weight" or self.running or not isinstance(value, Tensor):
                return value

            def used() -> Tensor:
                note()
                return value

            return deferred(used, like=value)

    Watched.__name__ = kind.__name__
    return Watched
