"""Compilation of functions on integers by numba, which is imported only where it pays."""

from collections.abc import Callable
from typing import Any


def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function compiled with checks of bounds, kept on disk where there is a folder."""
    import numba  # here, because small files need no compiler

    try:
        compiled: Callable[..., Any] = numba.njit(cache=True, boundscheck=True)(function)
    except RuntimeError:  # there is no folder for the compiled code to stay in
        compiled = numba.njit(boundscheck=True)(function)
    return compiled
