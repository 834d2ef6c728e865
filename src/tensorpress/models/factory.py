"""Models that a function of anyone's makes."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from torch import nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.models.names import unknown_choice
from tensorpress.models.optional_imports import build_module


def build_from_factory(module: str, name: str, options: Mapping[str, Any]) -> nn.Module:
    """Return what a function, or a class, of an importable module returns.

    Modules in the current folder can be imported.

    Parameters
    ----------
    module, name : str
        ``from module import name``.
    options : mapping
        Keyword arguments.

    Raises
    ------
    InvalidArgumentError
        If there is no such module or function, it raises, or it returns no module.

    Examples
    --------
    >>> build_from_factory("torch.nn", "Linear", {"in_features": 3, "out_features": 2})
    Linear(in_features=3, out_features=2, bias=True)
    """
    with _current_folder_first():
        try:
            found = import_module(module)
        except Exception as error:
            raise InvalidArgumentError(
                f"{module}:{name}: the module {module!r} cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
        factory = getattr(found, name, None)
        if factory is None:
            public = [known for known in vars(found) if callable(getattr(found, known))]
            raise unknown_choice(module, "function", name, public)
        if not callable(factory):
            raise InvalidArgumentError(
                f"{module}:{name} is {type(factory).__name__}, not a function or a class"
            )
        return build_module(f"{module}:{name}", factory, options)


@contextmanager
def _current_folder_first() -> Iterator[None]:
    folder = os.getcwd()  # noqa: PTH109, sys.path holds text
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
