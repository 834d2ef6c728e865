"""How numbers are written, in the terminal and on the page alike."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MISSING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"


def lookup(metrics: Mapping[str, Any], key: str) -> float | None:
    """Return the number at a dotted key, or None where there is no finite number.

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
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    # A seed is a name, not a quantity: thousands separators only where digits get hard to count.
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def count(value: float | None) -> str:
    """Write a count with thousands separators.

    Examples
    --------
    >>> count(431080), count(None)
    ('431,080', '–')
    """
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def short(value: float | None) -> str:
    """Write a count with three significant digits and a unit of thousands.

    Examples
    --------
    >>> short(972), short(11_689_512), short(1_814_073_344), short(None)
    ('972', '11.7M', '1.81G', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * scale:
            figure = value / scale
            digits = 2 if figure < 9.995 else 1 if figure < 99.95 else 0
            return f"{figure:.{digits}f}{unit}"
    return f"{value:,.0f}"


def ratio(value: float | None) -> str:
    """Write a ratio with about three significant digits.

    Examples
    --------
    >>> ratio(1.8731), ratio(144.66), ratio(1443.2), ratio(None)
    ('1.87×', '144.7×', '1,443×', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    digits = 2 if value < 10 else 1 if value < 1000 else 0
    return f"{value:,.{digits}f}{TIMES}"


def fixed(value: float | None, digits: int) -> str:
    """Write a number with a fixed number of decimals; what rounds to zero but is not is "<".

    Examples
    --------
    >>> fixed(0.4117, 3), fixed(0.00002, 3), fixed(0.0, 3), fixed(None, 3)
    ('0.412', '<0.001', '0.000', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    smallest = 10.0**-digits
    return f"<{smallest:.{digits}f}" if 0 < value < smallest / 2 else f"{value:,.{digits}f}"


def shape(sizes: Sequence[int]) -> str:
    """Write a shape, modes or ranks.

    Examples
    --------
    >>> shape((50, 25, 20)), shape(())
    ('50×25×20', '–')
    """
    return TIMES.join(map(str, sizes)) or MISSING


def size(value: float | None) -> tuple[str, str]:
    """Split a number of bytes into figure and unit, exact below a tenth of a megabyte.

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
