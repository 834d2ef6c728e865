"""Options of a scheme: plain data that a plan may set for a layer."""

from collections.abc import Mapping
from operator import index
from types import MappingProxyType
from typing import Any

from tensorpress.errors import InvalidArgumentError

Options = Mapping[str, Any]
"""Options of a scheme by name: bool, int, float, str or tuples of int."""

NO_OPTIONS: Options = MappingProxyType({})


def parse_option(name: str, value: Any, default: Any) -> Any:
    """Check the value of an option against the type of its default; a list becomes a tuple.

    Parameters
    ----------
    name : str
        The name of the option, for the error.
    value
        The value in the plan.
    default : bool, int, float, str or tuple of int
        The default of the option.

    Raises
    ------
    InvalidArgumentError
        If the value is of another type.
    """
    if isinstance(default, tuple):
        try:
            sizes = tuple(index(size) for size in value if not isinstance(size, bool))
            if len(sizes) == len(value) and min(sizes, default=1) >= 1:
                return sizes
        except TypeError:
            pass
        raise InvalidArgumentError(f"{name} must be whole numbers of at least 1, not {value!r}")
    if type(value) is not type(default):
        raise InvalidArgumentError(f"{name} must be a {type(default).__name__}, not {value!r}")
    return value
