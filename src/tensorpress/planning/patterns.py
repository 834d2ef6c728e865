"""What a name or a pattern stands for among the layers of a model."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from tensorpress.errors import InvalidArgumentError, unknown_name

REGEX = "re:"


def matching(pattern: str, names: Iterable[str], kept: Mapping[str, str]) -> list[str]:
    """Return the names a pattern stands for.

    Parameters
    ----------
    pattern : str
        A name; a pattern with ``*``, which also stands for dots; or ``re:`` and a regular
        expression that matches the whole name.
    names : iterable of str
        To choose from.
    kept : mapping of str to str
        Layers that cannot be chosen, with the reason.

    Raises
    ------
    InvalidArgumentError
        If it matches nothing, with the reason or the nearest names; or is no regular expression.

    Examples
    --------
    >>> names = ["conv1", "layer1.conv1", "layer1.conv2"]
    >>> matching("layer1.*", names, {}), matching("re:.*conv1", names, {})
    (['layer1.conv1', 'layer1.conv2'], ['conv1', 'layer1.conv1'])
    """
    names = list(names)
    if pattern.startswith(REGEX):
        found = _matching_regex(pattern, names)
    else:
        found = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
    if not found and pattern in kept:
        raise InvalidArgumentError(f"layer {pattern!r} cannot be pressed: {kept[pattern]}")
    if not found:
        raise unknown_name("layer or pattern", pattern, names)
    return found


def _matching_regex(pattern: str, names: Iterable[str]) -> list[str]:
    try:
        expression = re.compile(pattern.removeprefix(REGEX))
    except re.error as error:
        raise InvalidArgumentError(f"{pattern!r} is no regular expression: {error}") from None
    return [name for name in names if expression.fullmatch(name)]
