"""Reading the header of a `.tpz` file, which is not trusted."""

from math import prod
from typing import Any

from tensorpress.codec.contents import DTYPES
from tensorpress.codec.costs import affordable
from tensorpress.codec.description import (
    CORES,
    Description,
    PackedLayer,
    PackedScheme,
    PackedTucker,
    TensorEntry,
)
from tensorpress.errors import CorruptFileError, ModelMismatchError
from tensorpress.planning.layer_plans import Core, LayerPlan
from tensorpress.schemes.dimensions import Shape
from tensorpress.schemes.registry import LAYER_SCHEMES
from tensorpress.zoo import NETWORKS

MAX_MODES = 16
"""Most modes of a layer, and axes of a tensor, that a header is believed."""

_LARGEST = (1 << 31) - 1


def read_description(file: str, header: Any) -> Description:
    """Check a header and return what it says.

    Raises
    ------
    CorruptFileError
        If it is not of the form `Description.pack` writes, or describes factors far larger than
        the weights they stand for.
    ModelMismatchError
        If it names a network or a scheme that this version does not have.

    Examples
    --------
    >>> read_description("a.tpz", ["lenet5", [[0, [25, 20], 5]], 7]).layers
    (PackedTucker(ref=0, shape=None, modes=(25, 20), ranks=(5, 5), core='own'),)
    >>> read_description("a.tpz", ["lenet5", [[1, "tucker2", [8, 16]]], 7]).layers
    (PackedScheme(ref=1, shape=None, scheme='tucker2', ranks=(8, 16)),)
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
        layers = tuple(_layer(file, row, named=network is None) for row in rows)
        _expect(len({layer.ref for layer in layers}) == len(layers))
        tuckers = [layer for layer in layers if isinstance(layer, PackedTucker)]
        _expect(len({layer.ranks for layer in tuckers if layer.core == "shared"}) <= 1)
        _expect(affordable(LayerPlan("", t.modes, t.modes, t.ranks, t.core) for t in tuckers))
        if network is None:
            _expect(isinstance(tensors, list))
            return Description(None, layers, tuple(map(_entry, tensors)))
        _expect(type(tensors) is int)
        return Description(network, layers, tensors)
    except _MalformedError:
        raise CorruptFileError(f"{file}: the header does not describe a model") from None


class _MalformedError(Exception):
    """The header is not of the form it should be."""


def _expect(condition: bool) -> None:
    if not condition:
        raise _MalformedError


def _layer(file: str, row: Any, *, named: bool) -> PackedLayer:
    _expect(isinstance(row, list) and len(row) in (3 + named, 4 + named))
    shape = _sizes(row[0]) if named else None
    ref, *rest = row[named:]
    _expect(type(ref) is str if named else _is_number(ref, 0))
    if isinstance(rest[0], str):
        return PackedScheme(ref, shape, *_scheme(file, *rest))
    return PackedTucker(ref, shape, *_tucker(*rest))


def _tucker(modes: Any, ranks: Any, core: Any = 0) -> tuple[Shape, Shape, Core]:
    sizes = _sizes(modes)
    sides = _sizes([ranks] * len(sizes) if isinstance(ranks, int) else ranks)
    _expect(len(sides) == len(sizes) > 0)
    _expect(_is_number(core, 0) and core < len(CORES))
    return sizes, sides, CORES[core]


def _scheme(file: str, name: str, ranks: Any, *more: Any) -> tuple[str, Shape]:
    _expect(not more)
    if name not in LAYER_SCHEMES:
        raise ModelMismatchError(
            f"{file} names the scheme {name[:40]!r}, which this version does not have "
            f"(known: {', '.join(LAYER_SCHEMES)})"
        )
    return name, _sizes([ranks] if isinstance(ranks, int) else ranks)


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
