"""The header of a model that is not in the zoo: its layers and tensors by name, in msgpack."""

import zlib
from collections.abc import Mapping
from math import prod
from typing import Any

import msgpack

from tensorpress.codec.header import (
    MAX_MODES,
    Description,
    MalformedError,
    PackedLayer,
    TensorEntry,
    check_layers,
    require,
)
from tensorpress.codec.model_tensors import DTYPES
from tensorpress.errors import CorruptFileError, InvalidArgumentError, ModelMismatchError
from tensorpress.schemes.options import NO_OPTIONS, Options
from tensorpress.schemes.registry import SCHEMES
from tensorpress.schemes.reshape_modes import Shape

MAX_HEADER_BYTES = 2 << 20
"""Largest header, uncompressed: some twenty thousand tensors, and no memory to speak of."""

# The numbers of Tucker weights in files are their places here.
CORES: tuple[tuple[str, Options], ...] = (
    ("ada_tucker", {}),
    ("scada_tucker", {}),
    ("ada_tucker", {"diagonal": True}),
    ("ada_tucker", {"reduced": True}),
)

_LARGEST = (1 << 31) - 1
_RAW_DEFLATE = -zlib.MAX_WBITS  # without zlib's own header and checksum


def pack(description: Description) -> bytes:
    """Return a description as bytes, deflated.

    Raises
    ------
    InvalidArgumentError
        If it is larger than `unpack` believes.
    """
    layers = [_row(layer) for layer in description.layers]
    return compress([layers, description.tensors])


def compress(header: Any) -> bytes:
    """Return dictionaries, lists, strings and numbers as msgpack, deflated."""
    packed: bytes = msgpack.packb(header)
    if len(packed) > MAX_HEADER_BYTES:
        raise InvalidArgumentError(
            f"names and shapes take {len(packed):,} bytes: more than {MAX_HEADER_BYTES:,} cannot "
            "be stored"
        )
    deflate = zlib.compressobj(9, zlib.DEFLATED, _RAW_DEFLATE)
    return deflate.compress(packed) + deflate.flush()


def unpack(file: str, stored: bytes) -> Description:
    """Read what `pack` returned, which is not trusted.

    Raises
    ------
    CorruptFileError
        If it is of another form, or describes factors far larger than the weights they stand for.
    ModelMismatchError
        If it names a scheme that this version does not have.

    Examples
    --------
    >>> stored = compress([[["0", [20, 30], "ada_tucker", [5, 5], {"modes": [24, 25]}]], []])
    >>> [layer] = unpack("a.tpz", stored).layers
    >>> layer.scheme, layer.ranks, layer.options
    ('ada_tucker', (5, 5), {'modes': (24, 25)})
    """
    try:
        header = _decompress(stored)
        require(isinstance(header, list) and len(header) == 2)
        rows, tensors = header
        require(isinstance(rows, list) and isinstance(tensors, list))
        layers = tuple(_layer(file, row) for row in rows)
        check_layers(layers)
        return Description(None, layers, tuple(map(_entry, tensors)))
    except MalformedError:
        raise CorruptFileError(f"{file}: the header does not describe a model") from None


def _row(layer: PackedLayer) -> list[Any]:
    ranks = layer.ranks[0] if len(layer.ranks) == 1 else layer.ranks
    options = [dict(layer.options)] if layer.options else []
    return [layer.name, layer.shape, layer.scheme, ranks, *options]


def _decompress(stored: bytes) -> Any:
    stream = zlib.decompressobj(_RAW_DEFLATE)
    try:
        packed = stream.decompress(stored, MAX_HEADER_BYTES)
        require(stream.eof and not stream.unused_data)
        return msgpack.unpackb(packed, raw=False, ext_hook=_no_extension, timestamp=1)
    except (zlib.error, ValueError, TypeError):
        raise MalformedError from None


def _no_extension(_code: int, _data: bytes) -> Any:
    raise MalformedError


def _layer(file: str, row: Any) -> PackedLayer:
    require(isinstance(row, list) and len(row) in (4, 5))
    name, sizes, *rest = row
    require(type(name) is str)
    shape = _sizes(sizes)
    if isinstance(rest[0], str):
        return read_layer(file, name, shape, *rest)
    return PackedLayer(name, shape, *_tucker(*rest))


def _tucker(modes: Any, ranks: Any, core: Any = 0) -> tuple[str, Shape, Options]:
    """Read what files had before Tucker weights were a scheme like all others."""
    sizes = _sizes(modes)
    sides = _sizes([ranks] * len(sizes) if isinstance(ranks, int) else ranks)
    require(len(sides) == len(sizes) > 0)
    require(_is_number(core, 0) and core < len(CORES))
    scheme, flags = CORES[core]
    return scheme, sides, {"modes": sizes, **flags}


def read_layer(
    file: str, name: str, shape: Shape, scheme: str, ranks: Any, options: Any = NO_OPTIONS
) -> PackedLayer:
    """Return a layer as it is in a row, which is not trusted.

    Raises
    ------
    MalformedError
        For what cannot be ranks or options.
    ModelMismatchError
        For a scheme or an option that this version does not have.
    """
    if scheme not in SCHEMES:
        raise ModelMismatchError(
            f"{file} names the scheme {scheme[:40]!r}, which this version does not have "
            f"(known: {', '.join(SCHEMES)})"
        )
    require(isinstance(options, Mapping) and len(options) <= MAX_MODES)
    for key, value in options.items():
        if key not in SCHEMES[scheme].option_names:
            raise ModelMismatchError(
                f"{file}: layer {name[:40]!r} has an option of {scheme} that this version does not "
                "have"
            )
        require(not isinstance(value, list) or len(value) <= MAX_MODES)
    try:
        plain = SCHEMES[scheme].with_options(options).options
    except InvalidArgumentError:
        raise MalformedError from None
    return PackedLayer(
        name, shape, scheme, _sizes([ranks] if isinstance(ranks, int) else ranks), plain
    )


def _sizes(value: Any) -> Shape:
    require(isinstance(value, list) and len(value) <= MAX_MODES)
    require(all(_is_number(n, 1) for n in value))
    return tuple(value)


def _entry(row: Any) -> TensorEntry:
    require(isinstance(row, list) and [type(cell) for cell in row] == [str, list, str])
    name, shape, dtype = row
    require(len(shape) <= MAX_MODES and all(_is_number(n, 0) for n in shape))
    require(prod(max(n, 1) for n in shape) < 1 << 60)  # where sizes and strides overflow in torch
    require(dtype in DTYPES)
    return TensorEntry(name, tuple(shape), dtype)


def _is_number(value: Any, least: int) -> bool:
    return type(value) is int and least <= value <= _LARGEST
