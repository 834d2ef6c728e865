"""Tensors stored without entropy coding: bit for bit, as float16, or as short integers."""

import sys
from math import prod
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tensorpress.codec.bit_io import BitReader, BitWriter, unzigzag, zigzag
from tensorpress.errors import CorruptFileError, InvalidArgumentError

RawStorage = Literal["raw", "half", "integers"]

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
_MAX_INTEGERS = 64  # values: "integers" is for counters; "raw" is faster for many


def exact_storage(tensor: Tensor) -> RawStorage:
    """Return the shorter of the two storages that keep every bit of a tensor.

    Examples
    --------
    >>> exact_storage(torch.tensor(938)), exact_storage(torch.tensor(0.5))
    ('integers', 'raw')
    """
    if tensor.dtype in _INTEGERS and tensor.numel() <= _MAX_INTEGERS:
        raw_size = tensor.numel() * tensor.element_size()
        return "integers" if len(to_bytes(tensor, "integers")) < raw_size else "raw"
    return "raw"


def to_bytes(tensor: Tensor, storage: RawStorage) -> bytes:
    """Return the values of a tensor as bytes, in row-major order.

    Parameters
    ----------
    tensor : Tensor
        A tensor of any shape, type and device.
    storage : {"raw", "half", "integers"}
        "raw" keeps every bit, little endian, eight booleans to a byte; "half" is for floating point
        and casts to float16; "integers" takes one byte for each value from -64 to 63, two from
        -8192 to 8191, …

    Raises
    ------
    InvalidArgumentError
        If a tensor stored as "half" is not floating point, or not finite in float16.

    Examples
    --------
    >>> to_bytes(torch.tensor([0.5, -2.0]), "half").hex()
    '003800c0'
    """
    flat = tensor.detach().cpu().reshape(-1)
    if storage == "integers":
        writer = BitWriter()
        for value in flat.tolist():
            writer.varint(zigzag(value))
        return writer.to_bytes()
    if storage == "half":
        if not flat.is_floating_point():
            raise InvalidArgumentError(
                f"only floating point is stored as float16, not {flat.dtype}"
            )
        flat = flat.half()
        if not torch.isfinite(flat).all():
            raise InvalidArgumentError("a value is not finite in float16; store it bit for bit")
    if flat.dtype == torch.bool:
        return np.packbits(flat.numpy()).tobytes()
    octets = flat.contiguous().view(torch.uint8).numpy()
    return _little_endian(octets, flat.dtype).tobytes()


def from_bytes(
    reader: BitReader, storage: RawStorage, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Read a tensor that `to_bytes` stored.

    Parameters
    ----------
    reader : BitReader
        The bytes, which are untrusted.
    storage : {"raw", "half", "integers"}
        How the tensor was stored.
    shape : tuple of int
        Shape of the tensor.
    dtype : torch.dtype
        Type of the tensor.

    Raises
    ------
    CorruptFileError
        If the bytes end early, or do not encode a tensor of this type.

    Examples
    --------
    >>> data = to_bytes(torch.tensor([3, -70]), "integers")
    >>> from_bytes(BitReader(data), "integers", (2,), torch.int64)
    tensor([  3, -70])
    """
    count = prod(shape)
    if storage == "integers":
        return _read_integers(reader, count, dtype).reshape(shape)
    if storage == "half":
        if not dtype.is_floating_point:
            raise CorruptFileError(f"a tensor of {dtype} cannot have been stored as float16")
        halves = _view(reader.take(2 * count), torch.float16)
        if not torch.isfinite(halves).all():
            raise CorruptFileError("a value stored as float16 is not finite")
        return halves.to(dtype).reshape(shape)
    if dtype == torch.bool:
        octets = np.frombuffer(reader.take(-(-count // 8)), np.uint8)
        return torch.from_numpy(np.unpackbits(octets, count=count).astype(bool)).reshape(shape)
    return _view(reader.take(count * dtype.itemsize), dtype).reshape(shape)


def _view(data: bytes, dtype: torch.dtype) -> Tensor:
    """Return a tensor of shape (values,) with these bytes."""
    if not data:
        return torch.empty(0, dtype=dtype)
    octets = _little_endian(np.frombuffer(bytearray(data), np.uint8), dtype)
    return torch.from_numpy(octets).view(dtype)


def _little_endian(octets: NDArray[np.uint8], dtype: torch.dtype) -> NDArray[np.uint8]:
    """Swap the bytes of numbers on a big-endian machine."""
    if sys.byteorder == "little":
        return octets
    width = dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize
    return np.ascontiguousarray(octets.reshape(-1, width)[:, ::-1]).reshape(-1)


def _read_integers(reader: BitReader, count: int, dtype: torch.dtype) -> Tensor:
    if dtype not in _INTEGERS or count > _MAX_INTEGERS:
        raise CorruptFileError(f"{count} values of {dtype} cannot have been stored as integers")
    values = [unzigzag(reader.varint()) for _ in range(count)]
    limits = torch.iinfo(dtype)
    if any(not limits.min <= value <= limits.max for value in values):
        raise CorruptFileError(f"a stored integer exceeds {dtype}")
    return torch.tensor(values, dtype=dtype)
