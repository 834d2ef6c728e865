"""Compilation of functions on integers by numba, which is imported only where it pays."""

from collections.abc import Callable
from typing import Any


def compile_function(
    function: Callable[..., Any], *, inline: bool = False, checked: bool = True
) -> Callable[..., Any]:
    """Return a function compiled, which is kept on disk where there is a folder.

    Parameters
    ----------
    function : callable
        A function of integers and arrays of them. Compiled in several ways, it needs a
        ``__qualname__`` for each, by which it is kept.
    inline : bool
        Whether it becomes part of the compiled functions that call it.
    checked : bool
        Whether bounds are checked, as is needed where what is read is not trusted.
    """
    import numba  # here, because small files need no compiler

    options: dict[str, Any] = {"boundscheck": checked, "inline": "always" if inline else "never"}
    try:
        compiled: Callable[..., Any] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder for the compiled code to stay in
        compiled = numba.njit(**options)(function)
    return compiled
