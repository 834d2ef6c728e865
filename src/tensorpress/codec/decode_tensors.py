"""Decoding lists of tensors from a stream and a payload, which are not trusted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from torch import Tensor

from tensorpress.codec.adaptive_coder import Stream
from tensorpress.codec.bit_io import BitReader, Symbols
from tensorpress.codec.quantizers import MAX_SYMBOL, StepQuantizer, UniformQuantizer
from tensorpress.codec.raw_values import from_bytes, to_bytes
from tensorpress.codec.static_coder import MAX_REACH, TableSymbols, decode_huffman, decode_static
from tensorpress.codec.storage import (
    Coder,
    Constant,
    Quantizer,
    Storage,
    StorageCoder,
    quantizer_reach,
)
from tensorpress.errors import CorruptFileError


@dataclass(frozen=True)
class DecodedTensor:
    """A decoded tensor, and how many bits it takes.

    Attributes
    ----------
    values : Tensor
        The tensor, on the CPU.
    storage : StepQuantizer, UniformQuantizer, Constant or {"raw", "half", "integers"}
        Whether it is quantized and entropy coded, one number, or stored bit for bit, as float16 or
        as integers of variable length. A file does not record how values were rounded: a
        `UniformQuantizer` always has the rounding "nearest".
    symbols : ndarray of int32 or None
        The symbols of a quantized tensor, shape (size,).
    table_bits : float
        Bits of the file that describe the tensor, its share in a table included.
    coding : float or TableSymbols
        Bits of its values, or the table by which they are counted.
    """

    values: Tensor
    storage: Storage
    symbols: Symbols | None
    table_bits: float
    coding: float | TableSymbols

    @property
    def value_bits(self) -> float:
        """The bits of the file that its values take."""
        return self.coding.value_bits if isinstance(self.coding, TableSymbols) else self.coding


def decode_tensors(
    stream: Stream,
    payload: bytes,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[torch.dtype],
    coder: Coder = "range",
) -> list[DecodedTensor]:
    """Decode what `tensorpress.codec.encode_tensors.encode_tensors` encoded; nothing may follow.

    Parameters
    ----------
    stream, payload : Stream, bytes
        The two parts of a file. They are not trusted.
    shapes, dtypes : sequence
        The shape and type of each tensor. They must come from a model or have been checked, because
        memory is allocated for them.
    coder : {"range", "huffman"}
        The coder that the tensors were encoded with.

    Raises
    ------
    CorruptFileError
        If the bytes cannot be those of tensors with these shapes and types. Damage that leaves
        other valid values is for the checksum of the file to detect.
    """
    stream.expect(sum(map(prod, shapes)))
    storages = StorageCoder(stream)
    # The stream says how each tensor is stored, and holds the symbols that are coded adaptively.
    entries = [
        _read_entry(stream, storages, coder, shape, dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    has_tables = any(entry.reach is not None for entry in entries)
    table_size = stream.number("tables") if has_tables else 0
    stream.check_end()
    # The payload holds the values stored without entropy coding, the tables, the symbols coded by
    # them.
    reader = BitReader(payload)
    for i, entry in enumerate(entries):
        if isinstance(entry.storage, str):
            values = from_bytes(reader, entry.storage, shapes[i], dtypes[i])
            entries[i] = replace(entry, values=values)
    tables = BitReader(reader.take(table_size))
    rest = payload[reader.bytes_read :]
    for i, table in _decode_by_tables(coder, tables, rest, entries, shapes).items():
        table_bits = entries[i].table_bits + table.table_bits
        entries[i] = replace(entries[i], symbols=table.symbols, table_bits=table_bits, coding=table)
    tables.finish()
    return [
        entry.decode(shape, dtype)
        for entry, shape, dtype in zip(entries, shapes, dtypes, strict=True)
    ]


@dataclass(frozen=True)
class _Entry:
    """What has been read of a tensor; `reach` is the largest symbol of a table still to come."""

    storage: Storage
    table_bits: float
    symbols: Symbols | None = None
    coding: float | TableSymbols = 0.0
    reach: int | None = None
    values: Tensor | None = None

    def decode(self, shape: tuple[int, ...], dtype: torch.dtype) -> DecodedTensor:
        """Return the tensor once its symbols or values are known."""
        storage, symbols, values = self.storage, self.symbols, self.values
        coding = self.coding
        if isinstance(storage, Constant):
            values = torch.full(shape, storage.value, dtype=torch.float32).to(dtype)
        elif not isinstance(storage, str):
            values = _dequantize(storage, torch.from_numpy(symbols), dtype).reshape(shape)
        elif values is not None:
            coding = 8.0 * len(to_bytes(values, storage))
        assert values is not None
        return DecodedTensor(values, storage, symbols, self.table_bits, coding)


def _read_entry(
    stream: Stream, storages: StorageCoder, coder: Coder, shape: tuple[int, ...], dtype: torch.dtype
) -> _Entry:
    """Read how a tensor is stored, and its symbols if they are in the stream."""
    start = stream.bits
    storage = storages.code(dtype, shape)
    if isinstance(storage, (str, Constant)):
        return _Entry(storage, stream.bits - start)
    if 0 in shape:
        return _Entry(storage, stream.bits - start, np.empty(0, np.int32))
    if coder == "huffman":
        return _Entry(storage, stream.bits - start, reach=quantizer_reach(storage, MAX_SYMBOL))
    if stream.number("static"):
        reach = quantizer_reach(storage, MAX_SYMBOL)
        if isinstance(storage, StepQuantizer):
            reach = stream.number("reach")
        if reach > MAX_REACH:
            raise CorruptFileError(f"a probability table has more than {MAX_REACH:,} levels")
        return _Entry(storage, stream.bits - start, reach=reach)
    scale = storages.scale(shape)
    table_bits, start = stream.bits - start, stream.bits
    symbols = stream.symbols(shape, scale)
    return _Entry(storage, table_bits, symbols, stream.bits - start)


def _decode_by_tables(
    coder: Coder,
    tables: BitReader,
    data: bytes,
    entries: Sequence[_Entry],
    shapes: Sequence[tuple[int, ...]],
) -> dict[int, TableSymbols]:
    """Decode the symbols that are not in the stream, by the indices of their tensors."""
    reaches = {i: entry.reach for i, entry in enumerate(entries) if entry.reach is not None}
    sizes = {i: prod(shapes[i]) for i in reaches}
    if coder == "range":
        arrays = decode_static(tables, data, [(reach, sizes[i]) for i, reach in reaches.items()])
        return dict(zip(reaches, arrays, strict=True))
    # One Huffman code serves all tensors with the same quantizer.
    groups: dict[Storage, list[int]] = {}
    for i in reaches:
        groups.setdefault(entries[i].storage, []).append(i)
    pooled = decode_huffman(
        tables, data, [(reaches[m[0]], [sizes[i] for i in m]) for m in groups.values()]
    )
    return {
        i: array
        for members, arrays in zip(groups.values(), pooled, strict=True)
        for i, array in zip(members, arrays, strict=True)
    }


def _dequantize(quantizer: Quantizer, symbols: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the levels that symbols stand for."""
    reach = quantizer_reach(quantizer, MAX_SYMBOL)
    if isinstance(quantizer, UniformQuantizer):
        symbols = symbols + reach
    if symbols.numel():
        ends = torch.stack(symbols.aminmax())
        limits = (0, 2 * reach) if isinstance(quantizer, UniformQuantizer) else (-reach, reach)
        if ends[0] < limits[0] or ends[1] > limits[1]:
            raise CorruptFileError("a value exceeds the levels of its quantizer")
        if not bool(torch.isfinite(quantizer.values(ends, dtype)).all()):
            raise CorruptFileError(f"a level exceeds {dtype}")
    return quantizer.values(symbols, dtype)
