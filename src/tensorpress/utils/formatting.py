"""Text for sizes, names and failures in messages."""

import traceback
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


def format_failure(error: BaseException) -> str:
    """Return the text of an error in user code, with file and line."""
    inside = traceback.extract_tb(error.__traceback__)[1:]
    place = f" ({inside[-1].filename}, line {inside[-1].lineno})" if inside else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
