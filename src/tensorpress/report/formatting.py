"""Numbers as text, for the terminal and for pages."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tensorpress.utils.formatting import format_shape

MISSING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"


def lookup(metrics: Mapping[str, Any], key: str) -> float | None:
    """Return the number at a dotted key, or None if there is no finite number.

    Examples
    --------
    >>> lookup({"dense": {"params": 431_080}}, "dense.params")
    431080
    >>> lookup({"dense": None}, "dense.params")
    """
    value: Any = metrics
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the text of every leaf of nested dictionaries.

    Examples
    --------
    >>> list(flatten({"seconds": {"train": 61.25, "save": None}, "seed": 7}))
    [('seconds.train', '61.25'), ('seconds.save', '–'), ('seed', '7')]
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from flatten(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        yield key, ", ".join(map(_leaf, value)) or MISSING
    else:
        yield key, _leaf(value)


def _leaf(value: Any) -> str:
    """Return the text of a value that is not a dictionary."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    # Thousands separators only for large numbers: a seed is a name, not a quantity.
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def count(value: float | None) -> str:
    """Return a count with thousands separators.

    Examples
    --------
    >>> count(431080), count(None)
    ('431,080', '–')
    """
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def short_count(value: float | None) -> str:
    """Return a count with three significant digits and the unit k, M, G or T.

    Examples
    --------
    >>> short_count(972), short_count(11_689_512), short_count(1_814_073_344), short_count(None)
    ('972', '11.7M', '1.81G', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * scale:
            scaled = value / scale
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f}{unit}"
    return f"{value:,.0f}"


def ratio(value: float | None) -> str:
    """Return a ratio with about three significant digits.

    Examples
    --------
    >>> ratio(1.8731), ratio(144.66), ratio(1443.2), ratio(None)
    ('1.87×', '144.7×', '1,443×', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    digits = 2 if value < 10 else 1 if value < 1000 else 0
    return f"{value:,.{digits}f}{TIMES}"


def decimal(value: float | None, digits: int) -> str:
    """Return a number with fixed decimals, or as "<0.01" if it is positive but rounds to zero.

    Examples
    --------
    >>> decimal(0.4117, 3), decimal(0.00002, 3), decimal(0.0, 3), decimal(None, 3)
    ('0.412', '<0.001', '0.000', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    smallest = 10.0**-digits
    return f"<{smallest:.{digits}f}" if 0 < value < smallest / 2 else f"{value:,.{digits}f}"


def shape(sizes: Sequence[int]) -> str:
    """Return a shape, modes or ranks as text.

    Examples
    --------
    >>> shape((50, 25, 20)), shape(())
    ('50×25×20', '–')
    """
    return format_shape(sizes) or MISSING


def size(value: float | None) -> tuple[str, str]:
    """Return number and unit of a size in bytes, exact below 100,000 bytes.

    Examples
    --------
    >>> size(2104), size(1_284_551), size(None)
    (('2,104', 'bytes'), ('1.28', 'MB'), ('–', ''))
    """
    if value is None or not math.isfinite(value):
        return MISSING, ""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale and value >= 1e5:
            return f"{value / scale:.3g}", unit
    return count(value), "bytes"
