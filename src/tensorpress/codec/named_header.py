"""The header of a model that is not in the zoo: its layers and tensors by name, in msgpack."""

import zlib
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import msgpack

from tensorpress.codec.container import name_file_in_errors
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
from tensorpress.codec.read_budget import ROW_BYTES, ReadBudget
from tensorpress.errors import (
    CorruptFileError,
    InvalidArgumentError,
    ModelMismatchError,
    TensorPressError,
)
from tensorpress.schemes.options import NO_OPTIONS, Options
from tensorpress.schemes.registry import SCHEMES
from tensorpress.schemes.reshape_modes import Shape

MAX_HEADER_BYTES = 2 << 20
"""Largest header, uncompressed: about twenty thousand tensors."""

# Files contain indices into this list, so append only.
CORES: tuple[tuple[str, Options], ...] = (
    ("ada_tucker", {}),
    ("scada_tucker", {}),
    ("ada_tucker", {"diagonal": True}),
    ("ada_tucker", {"reduced": True}),
)

_LARGEST = (1 << 31) - 1
_LAYER_BYTES = 8 << 10  # memory of a layer's plan and of checking it
_UNPACKED_BYTES = 72  # most memory per packed byte: an empty list in a list
_RAW_DEFLATE = -zlib.MAX_WBITS  # without header and checksum of zlib


def pack(description: Description) -> bytes:
    """Return a description as compressed bytes.

    Raises
    ------
    InvalidArgumentError
        If it is larger than `MAX_HEADER_BYTES`.
    """
    layers = [_row(layer) for layer in description.layers]
    return compress([layers, description.tensors])


def compress(header: Any) -> bytes:
    """Return plain data as compressed msgpack."""
    packed: bytes = msgpack.packb(header)
    if len(packed) > MAX_HEADER_BYTES:
        raise InvalidArgumentError(
            f"names and shapes take {len(packed):,} bytes, but a file takes at most "
            f"{MAX_HEADER_BYTES:,}"
        )
    deflate = zlib.compressobj(9, zlib.DEFLATED, _RAW_DEFLATE)
    return deflate.compress(packed) + deflate.flush()


def unpack(file: str, stored: bytes, budget: ReadBudget | None = None) -> Description:
    """Read what `pack` returned, from untrusted bytes.

    Parameters
    ----------
    file : str
        The name of the file for errors.
    stored : bytes
        The header.
    budget : ReadBudget, optional
        The memory and work that reading may take.

    Raises
    ------
    CorruptFileError
        If it has another form, describes factors far larger than their weights, or exceeds the
        budget.
    ModelMismatchError
        If this version does not have a scheme that it names.

    Examples
    --------
    >>> stored = compress([[["0", [20, 30], "ada_tucker", [5, 5], {"modes": [24, 25]}]], []])
    >>> [layer] = unpack("a.tpz", stored).layers
    >>> layer.scheme, layer.ranks, layer.options
    ('ada_tucker', (5, 5), {'modes': (24, 25)})
    """
    try:
        with name_file_in_errors(file):
            rows = _Rows(stored, budget or ReadBudget(len(stored)))
            layers = tuple(_layer(file, row) for row in rows.read(_LAYER_BYTES))
            tensors = tuple(map(_entry, rows.read(ROW_BYTES)))
            rows.check_end()
            check_layers(layers)
        return Description(None, layers, tensors)
    except (MalformedError, zlib.error, msgpack.UnpackException, ValueError, TypeError) as error:
        if isinstance(error, TensorPressError):
            raise
        raise CorruptFileError(f"{file}: the header does not describe a model") from None


def _row(layer: PackedLayer) -> list[Any]:
    ranks = layer.ranks[0] if len(layer.ranks) == 1 else layer.ranks
    options = [dict(layer.options)] if layer.options else []
    return [layer.name, layer.shape, layer.scheme, ranks, *options]


class _Rows:
    """Reads the rows of both lists of a header one by one, so that memory stays bounded."""

    def __init__(self, stored: bytes, budget: ReadBudget) -> None:
        stream = zlib.decompressobj(_RAW_DEFLATE)
        self._packed = stream.decompress(stored, MAX_HEADER_BYTES)
        require(stream.eof and not stream.unused_data)
        self._budget = budget
        self._unpacker = msgpack.Unpacker(max_buffer_size=MAX_HEADER_BYTES)
        self._unpacker.feed(self._packed)
        require(self._unpacker.read_array_header() == 2)

    def read(self, row_bytes: int) -> Iterator[Any]:
        """Yield the rows of the next list, taking ``row_bytes`` and their size from the budget."""
        for _ in range(self._unpacker.read_array_header()):
            start = self._unpacker.tell()
            self._unpacker.skip()
            row = self._packed[start : self._unpacker.tell()]
            self._budget.take(row_bytes + len(row), passing=_UNPACKED_BYTES * len(row))
            yield msgpack.unpackb(row, raw=False, ext_hook=_no_extension, timestamp=1)

    def check_end(self) -> None:
        """Check that nothing follows."""
        require(self._unpacker.tell() == len(self._packed))


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
    """Read the form of older files for Tucker weights."""
    sizes = _sizes(modes)
    sides = _sizes([ranks] * len(sizes) if isinstance(ranks, int) else ranks)
    require(len(sides) == len(sizes) > 0)
    require(_is_number(core, 0) and core < len(CORES))
    scheme, flags = CORES[core]
    return scheme, sides, {"modes": sizes, **flags}


def read_layer(
    file: str, name: str, shape: Shape, scheme: str, ranks: Any, options: Any = NO_OPTIONS
) -> PackedLayer:
    """Return a layer from the values of an untrusted row.

    Raises
    ------
    MalformedError
        If ranks or options are malformed.
    ModelMismatchError
        If this version does not have the scheme or option.
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
    require(prod(max(n, 1) for n in shape) < 1 << 60)  # beyond it, torch's strides overflow
    require(dtype in DTYPES)
    return TensorEntry(name, tuple(shape), dtype)


def _is_number(value: Any, least: int) -> bool:
    return type(value) is int and least <= value <= _LARGEST
