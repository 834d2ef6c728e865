"""Text of sizes and names for messages."""

from collections.abc import Sequence

MAX_NAMES = 5
"""Number of names that a message lists."""


def format_shape(sizes: Sequence[int]) -> str:
    """Return sizes with multiplication signs between them.

    Examples
    --------
    >>> format_shape((5, 5, 20))
    '5×5×20'
    """
    return "×".join(map(str, sizes))


def format_names(names: list[str]) -> str:
    """Return the first five names, quoted, and the number of the others.

    Examples
    --------
    >>> format_names(["a", "b"])
    "'a', 'b'"
    """
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(map(repr, names[:MAX_NAMES])) + more
