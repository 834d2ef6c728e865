"""Text for sizes and names in messages."""

from collections.abc import Sequence

MAX_NAMES = 5
"""Number of names listed in a message."""


def format_shape(sizes: Sequence[int]) -> str:
    """Return sizes, separated by multiplication signs.

    Examples
    --------
    >>> format_shape((5, 5, 20))
    '5×5×20'
    """
    return "×".join(map(str, sizes))


def format_names(names: list[str]) -> str:
    """Return the first five names in quotes, and the number of further names.

    Examples
    --------
    >>> format_names(["a", "b"])
    "'a', 'b'"
    """
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(map(repr, names[:MAX_NAMES])) + more
