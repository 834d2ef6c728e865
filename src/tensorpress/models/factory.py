"""Functions and classes of importable modules, and the models that they build."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from torch import nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.models.names import unknown_choice
from tensorpress.models.optional_imports import build_module


def build_from_factory(module: str, name: str, options: Mapping[str, Any]) -> nn.Module:
    """Build a model with a function or class of an importable module.

    Modules in the current folder can be imported as well.

    Parameters
    ----------
    module, name : str
        The module and the name of the function in it.
    options : mapping
        Keyword arguments of the function.

    Raises
    ------
    InvalidArgumentError
        If there is no such module or function, or it raises an error or does not return a
        `torch.nn.Module`.

    Examples
    --------
    >>> build_from_factory("torch.nn", "Linear", {"in_features": 3, "out_features": 2})
    Linear(in_features=3, out_features=2, bias=True)
    """
    factory = import_function(module, name)
    with _current_folder_first():
        return build_module(f"{module}:{name}", factory, options)


def import_function(module: str, name: str) -> Callable[..., Any]:
    """Import a function or class from a module, which may be in the current folder.

    Raises
    ------
    InvalidArgumentError
        If the module cannot be imported, or has no such function.

    Examples
    --------
    >>> import_function("math", "sqrt")(4)
    2.0
    """
    with _current_folder_first():
        try:
            imported = import_module(module)
        except Exception as error:
            raise InvalidArgumentError(
                f"{module}:{name}: the module {module!r} cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
    function = getattr(imported, name, None)
    if function is None:
        public = [key for key in vars(imported) if callable(getattr(imported, key))]
        raise unknown_choice(module, "function", name, public)
    if not callable(function):
        raise InvalidArgumentError(
            f"{module}:{name} is of type {type(function).__name__}: expected a function or class"
        )
    result: Callable[..., Any] = function
    return result


@contextmanager
def _current_folder_first() -> Iterator[None]:
    folder = os.getcwd()  # noqa: PTH109, sys.path holds text
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
