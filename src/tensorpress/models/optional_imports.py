"""Imports of optional packages, and calls of their functions."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn

from tensorpress.errors import InvalidArgumentError, TensorPressError
from tensorpress.utils.formatting import format_failure


def require(module: str, purpose: str) -> Any:
    """Import and return a module of an optional package.

    Parameters
    ----------
    module : str
        The name of the module, which starts with the package name for ``pip install``.
    purpose : str
        The purpose of the module, for the message.

    Raises
    ------
    TensorPressError
        If the package is not installed or cannot be imported.

    Examples
    --------
    >>> require("json", "reading JSON").loads("[1]")
    [1]
    """
    package = module.partition(".")[0]
    if find_spec(package) is None:
        raise TensorPressError(
            f"{purpose} needs {package}, which is not installed: pip install {package}"
        )
    try:
        return import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        raise TensorPressError(f"{purpose} needs {package}, whose import fails: {error}") from error


def build_module(what: str, build: Callable[..., object], options: Mapping[str, Any]) -> nn.Module:
    """Build a `torch.nn.Module` with a function of another package.

    Parameters
    ----------
    what : str
        The name of the model, for messages.
    build : callable
        The function.
    options : mapping
        Keyword arguments of the function.

    Raises
    ------
    InvalidArgumentError
        If the function raises an error (the message has file and line) or returns anything else.

    Examples
    --------
    >>> build_module("a layer", nn.Linear, {"in_features": 2, "out_features": 3})
    Linear(in_features=2, out_features=3, bias=True)
    """
    try:
        model = build(**options)
    except Exception as error:
        raise InvalidArgumentError(f"{what} cannot be built: {format_failure(error)}") from error
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"{what} returns {type(model).__name__}, not a torch.nn.Module")
    return model
