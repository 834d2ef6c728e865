"""Names of factors of pressed layers in files."""

import re
from collections.abc import Collection

PARAMETRIZED = re.compile(r"(.+)\.parametrizations\.(\w+)\.original\d+")
FIRST_PART = re.compile(r"(.+)(?<!\.low_rank)\.(0\.weight|kept|pivots\.weight|cores\.0)")
"""The first tensor of a layer, for schemes that replace a whole layer."""


def factorized_weights(names: Collection[str]) -> set[str]:
    """Return the names of dense weights whose factors are among the names.

    Examples
    --------
    >>> factorized_weights(["fc.0.weight", "fc.1.weight", "norm.weight"])
    {'fc.weight'}
    >>> factorized_weights(["lstm.parametrizations.weight_ih_l0.original0"])
    {'lstm.weight_ih_l0'}
    """
    result = set()
    for name in names:
        if match := PARAMETRIZED.fullmatch(name):
            result.add(f"{match[1]}.{match[2]}")
        # A dense layer in a list may be named 0 as well, but a chain has a second layer.
        elif (match := FIRST_PART.fullmatch(name)) and (
            match[2] != "0.weight" or f"{match[1]}.1.weight" in names
        ):
            result.add(f"{match[1]}.weight")
    return result
