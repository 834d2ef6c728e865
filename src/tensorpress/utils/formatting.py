"""Sizes and names as messages write them."""

from collections.abc import Sequence

LISTED = 5


def format_shape(sizes: Sequence[int]) -> str:
    """Write sizes the way people do.

    Examples
    --------
    >>> format_shape((5, 5, 20))
    '5×5×20'
    """
    return "×".join(map(str, sizes))


def format_names(names: list[str]) -> str:
    """Return the first of some names, and how many more there are.

    Examples
    --------
    >>> format_names(["a", "b"])
    "'a', 'b'"
    """
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(repr, names[:LISTED])) + more
