"""Decodes lists of tensors from a stream and a payload, both untrusted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from torch import Tensor

from tensorpress.codec.adaptive_coder import Stream, symbol_work_bytes
from tensorpress.codec.bit_io import BitReader, Symbols
from tensorpress.codec.exact_floats import decode_floats
from tensorpress.codec.quantizers import MAX_SYMBOL, StepQuantizer, UniformQuantizer
from tensorpress.codec.raw_values import from_bytes
from tensorpress.codec.read_budget import MAX_MEMORY, ROW_BYTES, ReadBudget
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

_BLOCK = 1 << 18  # values that are dequantized at once
_CODED_BYTES = 24  # memory per value that is coded bit for bit
_CODED_SPEED = 8  # such values that take the time of a symbol


@dataclass(frozen=True)
class DecodedTensor:
    """A decoded tensor and the bits that it takes.

    Attributes
    ----------
    values : Tensor
        The tensor, on the CPU. A `Constant` is an expanded number, which takes no memory per value.
    storage : StepQuantizer, UniformQuantizer, Constant or {"raw", "coded", "half", "integers"}
        How it is stored: quantized and entropy coded, as one number, bit for bit, coded bit for
        bit, as float16, or as integers of variable length. A file does not record rounding: a
        `UniformQuantizer` always has the rounding "nearest".
    symbols : ndarray of int32 or None
        The symbols of a quantized tensor, shape (size,), if they were requested.
    table_bits : float
        Bits of the file that describe the tensor, including its share of a table.
    coding : float or TableSymbols
        Bits of its values, or the table for counting them.
    """

    values: Tensor
    storage: Storage
    symbols: Symbols | None
    table_bits: float
    coding: float | TableSymbols

    @property
    def finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        values = self.values
        if isinstance(self.storage, Constant):
            values = torch.tensor(self.storage.value, dtype=torch.float32).to(values.dtype)
        if values.is_complex():
            values = torch.view_as_real(values)
        if not (values.numel() and values.is_floating_point()):
            return True
        return bool(torch.isfinite(torch.stack(values.aminmax())).all())

    @property
    def value_bits(self) -> float:
        """The bits of the file that its values take."""
        return self.coding.value_bits if isinstance(self.coding, TableSymbols) else self.coding


def own_values(tensor: DecodedTensor, budget: ReadBudget) -> Tensor:
    """Return a tensor's values in writable memory.

    Raises
    ------
    CorruptFileError
        If this exceeds the budget.
    """
    if not isinstance(tensor.storage, Constant):
        return tensor.values
    budget.take(tensor.values.numel() * tensor.values.itemsize)
    return tensor.values.clone(memory_format=torch.contiguous_format)


def decode_tensors(
    stream: Stream,
    payload: bytes,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[torch.dtype],
    coder: Coder = "range",
    *,
    budget: ReadBudget | None = None,
    keep_symbols: bool = True,
) -> list[DecodedTensor]:
    """Decode what `tensorpress.codec.encode_tensors.encode_tensors` encoded; nothing may follow.

    Parameters
    ----------
    stream, payload : Stream, bytes
        The two parts of a file, which are untrusted.
    shapes, dtypes : sequence
        The shape and type of each tensor.
    coder : {"range", "huffman"}
        The coder with which the tensors were encoded.
    budget : ReadBudget, optional
        The memory and work that decoding may take; unlimited by default.
    keep_symbols : bool
        Whether to return symbols besides values, which doubles the memory.

    Raises
    ------
    CorruptFileError
        If the bytes do not encode tensors of these shapes and types, or exceed the budget. Damage
        that gives other valid values is left to the checksum of the file.
    """
    stream.expect(sum(map(prod, shapes)))
    decoder = _Decoder(stream, coder, budget or ReadBudget(0, max_bytes=MAX_MEMORY), keep_symbols)
    # The stream has the storage of each tensor, and the symbols that are coded adaptively.
    entries = list(map(decoder.read, shapes, dtypes))
    has_tables = any(entry.reach is not None for entry in entries)
    table_size = stream.number("tables") if has_tables else 0
    stream.check_end()
    # The payload has values stored without entropy coding, tables, and symbols coded by tables.
    reader = BitReader(payload)
    for i, entry in enumerate(entries):
        if isinstance(entry.storage, str):
            entries[i] = decoder.read_raw(reader, entry, shapes[i], dtypes[i])
    tables = BitReader(reader.take(table_size))
    rest = payload[reader.bytes_read :]
    decoded = _decode_by_tables(decoder, tables, rest, entries, shapes)
    for i in list(decoded):
        entries[i] = decoder.add_table(entries[i], decoded.pop(i), shapes[i], dtypes[i])
    tables.finish()
    return [entry.result() for entry in entries]


@dataclass(frozen=True)
class _Entry:
    """What was read of a tensor; `reach` is the largest symbol of a table to be read."""

    storage: Storage
    table_bits: float
    values: Tensor | None = None
    symbols: Symbols | None = None
    coding: float | TableSymbols = 0.0
    reach: int | None = None

    def result(self) -> DecodedTensor:
        assert self.values is not None
        return DecodedTensor(self.values, self.storage, self.symbols, self.table_bits, self.coding)


class _Decoder:
    """A decoder of one tensor after the other, within a budget."""

    def __init__(
        self, stream: Stream, coder: Coder, budget: ReadBudget, keep_symbols: bool
    ) -> None:
        self.coder, self.budget = coder, budget
        self._stream, self._keep_symbols = stream, keep_symbols
        self._storages = StorageCoder(stream)

    def read(self, shape: tuple[int, ...], dtype: torch.dtype) -> _Entry:
        """Read how a tensor is stored, and its values if they are in the stream."""
        stream, start = self._stream, self._stream.bits
        storage = self._storages.code(dtype, shape)
        self.budget.take(ROW_BYTES)
        if isinstance(storage, Constant):
            number = torch.tensor(storage.value, dtype=torch.float32).to(dtype)
            return _Entry(storage, stream.bits - start, number.expand(shape))
        if isinstance(storage, str):
            return _Entry(storage, stream.bits - start)
        if 0 in shape:
            nothing = np.empty(0, np.int32)
            return _Entry(storage, stream.bits - start, torch.empty(shape, dtype=dtype), nothing)
        if self.coder == "huffman":
            return _Entry(storage, stream.bits - start, reach=quantizer_reach(storage, MAX_SYMBOL))
        if stream.number("static"):
            return _Entry(storage, stream.bits - start, reach=self._read_reach(storage))
        scale = self._storages.scale(shape)
        table_bits, start = stream.bits - start, stream.bits
        # Symbols, 4 bytes each, and the coder's means are in memory until there are values.
        self.budget.work(prod(shape))
        self.budget.take(4 * prod(shape), passing=symbol_work_bytes(shape))
        symbols = stream.symbols(shape, scale)
        bits = stream.bits - start
        return self._dequantize(_Entry(storage, table_bits, coding=bits), symbols, shape, dtype)

    def read_raw(
        self, reader: BitReader, entry: _Entry, shape: tuple[int, ...], dtype: torch.dtype
    ) -> _Entry:
        """Read a tensor's values that are not quantized."""
        assert isinstance(entry.storage, str)
        start = reader.position
        if entry.storage == "coded":
            # Values, and meanwhile keys, contexts, symbols of tables and a plane.
            self.budget.take(prod(shape) * dtype.itemsize, passing=_CODED_BYTES * prod(shape))
            self.budget.work(prod(shape) // _CODED_SPEED)
            values = decode_floats(reader, shape, dtype)
        else:  # the file is no smaller than the values
            values = from_bytes(reader, entry.storage, shape, dtype)
        return replace(entry, values=values, coding=float(reader.position - start))

    def add_table(
        self, entry: _Entry, table: TableSymbols, shape: tuple[int, ...], dtype: torch.dtype
    ) -> _Entry:
        """Return a tensor's entry with the values that were coded by a table."""
        coding = table if self._keep_symbols else 0.0
        entry = replace(entry, table_bits=entry.table_bits + table.table_bits, coding=coding)
        return self._dequantize(entry, table.symbols, shape, dtype)

    def _dequantize(
        self, entry: _Entry, symbols: Symbols, shape: tuple[int, ...], dtype: torch.dtype
    ) -> _Entry:
        """Return an entry with values for symbols, whose memory is freed unless they are kept."""
        assert isinstance(entry.storage, UniformQuantizer | StepQuantizer)
        self.budget.take(dtype.itemsize * prod(shape))
        values = _dequantize(entry.storage, torch.from_numpy(symbols), dtype).reshape(shape)
        if self._keep_symbols:
            return replace(entry, values=values, symbols=symbols)
        self.budget.give_back(4 * prod(shape))
        return replace(entry, values=values)

    def _read_reach(self, storage: Quantizer) -> int:
        """Read the largest symbol of a table."""
        reach = quantizer_reach(storage, MAX_SYMBOL)
        if isinstance(storage, StepQuantizer):
            reach = self._stream.number("reach")
        if reach > MAX_REACH:
            raise CorruptFileError(f"a probability table has more than {MAX_REACH:,} levels")
        return reach


def _decode_by_tables(
    decoder: _Decoder,
    tables: BitReader,
    data: bytes,
    entries: Sequence[_Entry],
    shapes: Sequence[tuple[int, ...]],
) -> dict[int, TableSymbols]:
    """Decode the symbols that are not in the stream, by index of the tensor."""
    reaches = {i: entry.reach for i, entry in enumerate(entries) if entry.reach is not None}
    sizes = {i: prod(shapes[i]) for i in reaches}
    for size in sizes.values():
        decoder.budget.take(4 * size)
    if decoder.coder == "range":
        numbers = [(reach, sizes[i]) for i, reach in reaches.items()]
        arrays = decode_static(tables, data, numbers, decoder.budget)
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
    """Return the levels of symbols."""
    uniform = isinstance(quantizer, UniformQuantizer)
    reach = quantizer_reach(quantizer, MAX_SYMBOL)
    shift = reach if uniform else 0  # the levels of a uniform quantizer are counted from 0 on
    if symbols.numel():
        ends = torch.stack(symbols.aminmax())
        if ends[0] < -reach or ends[1] > reach:
            raise CorruptFileError("a value exceeds the levels of its quantizer")
        if not bool(torch.isfinite(quantizer.values(ends + shift, dtype)).all()):
            raise CorruptFileError(f"a level exceeds {dtype}")
    result = torch.empty(symbols.shape, dtype=dtype)
    for start in range(0, len(symbols), _BLOCK):
        block = slice(start, start + _BLOCK)
        result[block] = quantizer.values(symbols[block] + shift, dtype)
    return result
