"""Lossless coding of floating-point values: exponents are coded relative to their row and column.

The sign and last mantissa bits of a value are nearly random, but its exponent and first two
mantissa bits are not. Rows and columns of a trained weight differ in scale, so an exponent is coded
relative to the scales of its row and column, in half octaves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tensorpress.codec.bit_io import BitReader, BitWriter, unzigzag, zigzag
from tensorpress.codec.compiled import compile_function
from tensorpress.codec.rans import decode_rans, encode_rans
from tensorpress.codec.raw_values import from_bytes, to_bytes
from tensorpress.errors import CorruptFileError

SPLITS = {
    torch.float16: (3, 7),
    torch.bfloat16: (2, 5),
    torch.float32: (2, 21),
    torch.float64: (2, 50),
}
"""The coded types: mantissa bits coded with the exponent, and other mantissa bits.
"""

_MANY = 1 << 10  # values of a tensor from which coding is worth its tables
_RAW, _PLAIN, _RELATIVE = 0, 1, 2  # kinds of coded tensors
_PACKED, _TABLE = 0, 1  # kinds of planes
_MIN_GAIN = 0.01  # share of a plane's bits that a table must save
_SIDE_BITS = 5  # approximate bits of the scale of a row or column

Words = NDArray[Any]  # unsigned integers of the width of the values
_UNSIGNED = {2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True)
class _Scales:
    """The scales of rows and columns in half octaves, and the least relative exponent minus one."""

    rows: NDArray[np.uint16]
    columns: NDArray[np.uint16]
    offset: int

    @property
    def sums(self) -> NDArray[np.int32]:
        """The expected exponent of each value in half octaves, shape (rows, columns)."""
        return np.add.outer(self.rows.astype(np.int32), self.columns.astype(np.int32))


def encode_floats(tensor: Tensor) -> bytes:
    """Encode a floating-point tensor losslessly.

    Parameters
    ----------
    tensor : Tensor
        A tensor of a type in `SPLITS`, any shape, NaN and infinities included.

    Examples
    --------
    >>> weight = torch.randn(100, 100).bfloat16()
    >>> data = encode_floats(weight)
    >>> decoded = decode_floats(BitReader(data), (100, 100), torch.bfloat16)
    >>> torch.equal(decoded, weight), len(data) < 0.75 * weight.nbytes
    (True, True)
    """
    raw = bytes([_RAW]) + to_bytes(tensor, "raw")
    if tensor.numel() < _MANY:
        return raw
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    values = flat.view(torch.uint8).numpy().view(_UNSIGNED[tensor.itemsize])
    # A value is sign, exponent, mantissa; its key is exponent and first mantissa bits.
    first, shift = SPLITS[tensor.dtype]
    keys = (values >> shift).astype(np.uint16)
    keys &= np.uint16((1 << 8 * tensor.itemsize - 1 - shift) - 1)
    data = _encode_keys(keys, first, len(tensor) if tensor.dim() > 1 else 1)
    if data is None:
        return raw
    signs = values >> 8 * tensor.itemsize - 1
    rest = values & (1 << shift) - 1 | signs << shift
    planes = [
        _encode_plane((rest >> start).astype(np.uint8) & np.uint8((1 << width) - 1), width)
        for start, width in _planes(shift + 1)
    ]
    coded = b"".join([data, *planes])
    return coded if len(coded) < len(raw) else raw


def decode_floats(reader: BitReader, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Read what `encode_floats` returned.

    Parameters
    ----------
    reader : BitReader
        The bytes, which are untrusted.
    shape : tuple of int
        Shape of the tensor.
    dtype : torch.dtype
        Type of the tensor.

    Raises
    ------
    CorruptFileError
        If the bytes do not encode such a tensor.
    """
    kind = reader.bits(8)
    if kind == _RAW:
        return from_bytes(reader, "raw", shape, dtype)
    if kind not in (_PLAIN, _RELATIVE) or dtype not in SPLITS or prod(shape) < _MANY:
        raise CorruptFileError(f"code {kind} is not valid for {prod(shape)} values of {dtype}")
    first, shift = SPLITS[dtype]
    width = 8 * dtype.itemsize
    rows = shape[0] if len(shape) > 1 else 1
    limit = 1 << width - 1 - shift - first
    keys = _decode_keys(reader, kind, rows, prod(shape) // rows, first, limit)
    unsigned = _UNSIGNED[dtype.itemsize]
    values = keys.astype(unsigned)
    values <<= unsigned(shift)
    for start, bits in _planes(shift + 1):
        plane = _decode_plane(reader, len(values), bits).astype(unsigned)
        if start + bits > shift:  # the last plane, with the sign on top
            values |= (plane >> unsigned(shift - start)) << unsigned(width - 1)
            plane &= unsigned((1 << shift - start) - 1)
        values |= plane << unsigned(start)
    return torch.from_numpy(values.view(np.uint8)).view(dtype).reshape(shape)


def _planes(width: int) -> list[tuple[int, int]]:
    """Return the first bit and the width of each plane of ``width`` bits, lowest first."""
    return [(start, min(8, width - start)) for start in range(0, width, 8)]


def _encode_keys(keys: NDArray[np.uint16], first: int, rows: int) -> bytes | None:
    """Encode keys by one table, or relative to scales by one table per half octave."""
    none = _Scales(np.zeros(rows, np.uint16), np.zeros(len(keys) // rows, np.uint16), 0)
    best, bits, kind = none, np.inf, _PLAIN
    candidates = (
        [none] if rows == 1 else [none, _fit_scales((keys >> np.uint16(first)).reshape(rows, -1))]
    )
    for number, scales in enumerate(candidates):
        symbols, scales, contexts = _relative_symbols(keys, first, scales)
        cost: float = _SIDE_BITS * number * (rows + len(scales.columns))
        for k in range(1 + number):
            cost += _entropy(symbols[contexts == k] if number else symbols)
        if cost < bits:
            best, bits, kind = scales, cost, _PLAIN + number
            chosen = symbols, contexts
    symbols, contexts = chosen
    writer = BitWriter()
    writer.bits(kind, 8)
    writer.varint(zigzag(best.offset))
    no_contexts = np.empty(0, np.uint8)
    parts: list[bytes | None] = [writer.to_bytes()]
    if kind == _RELATIVE:
        parts += [encode_rans(side, no_contexts, 1) for side in (best.rows, best.columns)]
    parts.append(encode_rans(symbols, contexts if kind == _RELATIVE else no_contexts, kind))
    return None if None in parts else b"".join(part for part in parts if part is not None)


def _decode_keys(
    reader: BitReader, kind: int, rows: int, columns: int, first: int, limit: int
) -> NDArray[np.uint16]:
    """Read what `_encode_keys` returned: keys whose exponents are below a limit."""
    offset = unzigzag(reader.varint())
    no_contexts = np.empty(0, np.uint8)
    if abs(offset) >= 1 << 16:
        raise CorruptFileError(f"{offset} is not a valid exponent")
    if kind == _PLAIN:
        symbols = decode_rans(reader, rows * columns, no_contexts, 1)
        sides = np.zeros(1, np.uint16), np.zeros(rows * columns, np.uint16)
    else:
        sides = (
            decode_rans(reader, rows, no_contexts, 1),
            decode_rans(reader, columns, no_contexts, 1),
        )
        contexts = (_Scales(*sides, offset).sums & 1).astype(np.uint8).reshape(-1)
        symbols = decode_rans(reader, rows * columns, contexts, 2)
    keys = np.empty(rows * columns, np.uint16)
    if not _compiled(_absolute_keys)(symbols, *sides, offset, first, limit, keys):
        raise CorruptFileError("an exponent exceeds its type")
    return keys


def _fit_scales(exponents: NDArray[np.uint16]) -> _Scales:
    """Return the mean exponents of rows and columns in half octaves, ignoring zeros."""
    counts = exponents > 0

    def mean(axis: int | None) -> Any:
        return exponents.sum(axis, dtype=np.int64) / np.maximum(counts.sum(axis), 1)

    rows = np.round(2 * mean(1)).astype(np.int32)
    columns = np.round(2 * (mean(0) - mean(None))).astype(np.int32)
    # Only sums matter, and the offset takes whole octaves, so scales can be non-negative.
    rows, columns = rows + columns.min(), columns - columns.min()
    rows -= rows.min() & ~1
    return _Scales(rows.astype(np.uint16), columns.astype(np.uint16), 0)


def _relative_symbols(
    keys: NDArray[np.uint16], first: int, scales: _Scales
) -> tuple[NDArray[np.uint16], _Scales, NDArray[np.uint8]]:
    """Return symbols of keys relative to scales, the scales with offset, and the contexts."""
    sums = scales.sums.reshape(-1)
    exponents = (keys >> first).astype(np.int32)
    relative = exponents - (sums >> 1)
    present = exponents > 0
    offset = int(relative.min(where=present, initial=1 << 20)) - 1 if present.any() else 0
    # 0 stays 0, for zeros and subnormal numbers; the least other exponent becomes 1.
    relative = np.where(present, relative - offset, 0)
    symbols = (relative << first | keys & (1 << first) - 1).astype(np.uint16)
    return symbols, _Scales(scales.rows, scales.columns, offset), (sums & 1).astype(np.uint8)


def _absolute_keys(
    symbols: Any, rows: Any, columns: Any, offset: int, first: int, limit: int, keys: Any
) -> bool:
    """Fill `keys` from symbols relative to scales; False if an exponent is not below `limit`."""
    i = 0
    for row in range(len(rows)):
        for column in range(len(columns)):
            symbol = np.int64(symbols[i])
            exponent = symbol >> first
            if exponent > 0:
                scale = np.int64(rows[row]) + np.int64(columns[column])
                exponent += (scale >> 1) + offset
                if exponent <= 0 or exponent >= limit:
                    return False
            keys[i] = exponent << first | symbol & (1 << first) - 1
            i += 1
    return True


def _entropy(symbols: NDArray[np.uint16]) -> float:
    """Return the bits of symbols, from their histogram."""
    counts = np.bincount(symbols)
    counts = counts[counts > 0]
    return float(counts @ np.log2(counts.sum() / counts)) if counts.size else 0.0


def _encode_plane(plane: NDArray[np.uint8], width: int) -> bytes:
    """Encode values of ``width`` bits: by a table if that pays, else packed."""
    size = plane.size
    if _entropy(plane.astype(np.uint16)) < (1 - _MIN_GAIN) * width * size:
        coded = encode_rans(plane.astype(np.uint16), np.empty(0, np.uint8), 1)
        if coded is not None:
            return bytes([_TABLE]) + coded
    packed = plane
    if width < 8:
        packed = np.zeros(-(-width * size // 8), np.uint8)
        _compiled(_pack)(plane, width, packed)
    return bytes([_PACKED]) + packed.tobytes()


def _decode_plane(reader: BitReader, size: int, width: int) -> NDArray[np.uint8]:
    """Read what `_encode_plane` returned."""
    kind = reader.bits(8)
    if kind == _TABLE:
        symbols = decode_rans(reader, size, np.empty(0, np.uint8), 1)
        if int(symbols.max()) >> width:
            raise CorruptFileError(f"a number exceeds its {width} bits")
        return symbols.astype(np.uint8)
    if kind != _PACKED:
        raise CorruptFileError(f"code {kind} is not valid for a plane of bits")
    packed = np.frombuffer(reader.take(-(-width * size // 8)), np.uint8)
    if width == 8:
        return packed
    plane = np.empty(size, np.uint8)
    _compiled(_unpack)(packed, width, plane)
    return plane


def _pack(plane: Any, width: int, packed: Any) -> None:
    """Pack values of ``width`` bits, highest bit first."""
    pending, bits, at = 0, 0, 0
    for value in plane:
        pending = (pending << width | np.int64(value)) & 0xFFFF
        bits += width
        if bits >= 8:
            bits -= 8
            packed[at] = pending >> bits & 255
            at += 1
    if bits:
        packed[at] = pending << 8 - bits & 255


def _unpack(packed: Any, width: int, plane: Any) -> None:
    """Read what `_pack` wrote."""
    pending, bits, at = 0, 0, 0
    for i in range(len(plane)):
        if bits < width:
            pending = (pending << 8 | np.int64(packed[at])) & 0xFFFF
            bits += 8
            at += 1
        bits -= width
        plane[i] = pending >> bits & (1 << width) - 1


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Unchecked, because the sizes of arrays do not depend on the content of a file.
    return compile_function(function, checked=False)
