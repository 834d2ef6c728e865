"""Reading the header of a `.tpz` file, which is not trusted."""

from math import prod
from typing import Any

from tensorpress.codec.contents import DTYPES
from tensorpress.codec.description import CORES, Description, PackedLayer, TensorEntry
from tensorpress.decompose.tucker import tucker_params
from tensorpress.errors import CorruptFileError, ModelMismatchError
from tensorpress.planning.plan import Core
from tensorpress.schemes.dimensions import Shape
from tensorpress.zoo import NETWORKS

MAX_MODES = 16
"""Most modes of a layer, and axes of a tensor, that a header is believed."""

_LARGEST = (1 << 31) - 1
_ROOM = 1 << 24  # values; a shared core may be larger than the small layers that hold it


def read_description(file: str, header: Any) -> Description:
    """Check a header and return what it says.

    Raises
    ------
    CorruptFileError
        If it is not of the form `Description.pack` writes, or describes factors far larger than
        the weights they stand for.
    ModelMismatchError
        If it names a network that this version does not have.

    Examples
    --------
    >>> read_description("a.tpz", ["lenet5", [[0, [25, 20], 5]], 7]).layers
    ((0, None, (25, 20), (5, 5), 'own'),)
    """
    network = header[0] if isinstance(header, list) and len(header) == 3 else header
    if isinstance(network, str) and network not in NETWORKS:
        raise ModelMismatchError(
            f"{file} names the network {network[:40]!r}, which this version does not have "
            f"(known: {', '.join(NETWORKS)})"
        )
    try:
        _expect(isinstance(header, list) and len(header) == 3)
        _, rows, tensors = header
        _expect(network is None or isinstance(network, str))
        _expect(isinstance(rows, list))
        layers = tuple(_layer(row, named=network is None) for row in rows)
        _expect(len({ref for ref, *_ in layers}) == len(layers))
        _expect(len({ranks for *_, ranks, core in layers if core == "shared"}) <= 1)
        _expect(affordable(layers))
        if network is None:
            _expect(isinstance(tensors, list))
            return Description(None, layers, tuple(map(_entry, tensors)))
        _expect(type(tensors) is int)
        return Description(network, layers, tensors)
    except _MalformedError:
        raise CorruptFileError(f"{file}: the header does not describe a model") from None


def affordable(layers: tuple[PackedLayer, ...]) -> bool:
    """Return whether neither factors nor rebuilding take much more than the weights themselves.

    Examples
    --------
    >>> affordable(((0, None, (25, 20), (5, 5), "own"),))
    True
    >>> affordable(((0, None, (25, 20), (9999, 9999), "own"),))
    False
    """
    dense = sum(prod(modes) for _, _, modes, _, _ in layers)
    return sum(_cost(modes, ranks, core) for *_, modes, ranks, core in layers) <= 2 * dense + _ROOM


class _MalformedError(Exception):
    """The header is not of the form it should be."""


def _expect(condition: bool) -> None:
    if not condition:
        raise _MalformedError


def _layer(row: Any, *, named: bool) -> PackedLayer:
    _expect(isinstance(row, list) and len(row) in (3 + named, 4 + named))
    shape = _sizes(row[0]) if named else None
    ref, modes, ranks, *core = row[named:]
    _expect(type(ref) is str if named else _is_number(ref, 0))
    sizes = _sizes(modes)
    sides = _sizes([ranks] * len(sizes) if isinstance(ranks, int) else ranks)
    _expect(len(sides) == len(sizes) > 0)
    _expect(not core or (_is_number(core[0], 0) and core[0] < len(CORES)))
    return ref, shape, sizes, sides, CORES[core[0]] if core else "own"


def _cost(modes: Shape, ranks: Shape, core: Core) -> int:
    """Return the most values that a layer's factors, or a step of rebuilding its weight, take."""
    if core == "diagonal":
        half = (len(modes) + 1) // 2
        return max(ranks) * (1 + prod(modes[:half]) + prod(modes[half:]) + sum(modes))
    widest = prod(max(n, k) for n, k in zip(modes, ranks, strict=True))
    return max(widest, tucker_params(modes, ranks))


def _sizes(value: Any) -> Shape:
    _expect(isinstance(value, list) and len(value) <= MAX_MODES)
    _expect(all(_is_number(n, 1) for n in value))
    return tuple(value)


def _entry(row: Any) -> TensorEntry:
    _expect(isinstance(row, list) and [type(cell) for cell in row] == [str, list, str])
    name, shape, dtype = row
    _expect(len(shape) <= MAX_MODES and all(_is_number(n, 0) for n in shape))
    _expect(prod(max(n, 1) for n in shape) < 1 << 60)  # where sizes and strides overflow in torch
    _expect(dtype in DTYPES)
    return TensorEntry(name, tuple(shape), dtype)


def _is_number(value: Any, least: int) -> bool:
    return type(value) is int and least <= value <= _LARGEST
