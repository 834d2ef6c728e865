"""Compiles functions on integers by numba, which is imported only if it pays."""

from collections.abc import Callable
from typing import Any


def compile_function(
    function: Callable[..., Any], *, inline: bool = False, checked: bool = True
) -> Callable[..., Any]:
    """Compile a function; the result is cached on disk if there is a folder for it.

    Parameters
    ----------
    function : callable
        A function of integers and arrays of integers. If it is compiled in several ways, each needs
        another ``__qualname__``, the key of the cache.
    inline : bool
        Whether to inline it into compiled functions that call it.
    checked : bool
        Whether to check bounds, as needed for reading untrusted data.
    """
    import numba  # here, because small files need no compiler

    options: dict[str, Any] = {"boundscheck": checked, "inline": "always" if inline else "never"}
    try:
        compiled: Callable[..., Any] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder for the cache
        compiled = numba.njit(**options)(function)
    return compiled
