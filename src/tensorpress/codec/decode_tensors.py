"""Lists of tensors out of a stream and a payload, which nobody vouches for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from torch import Tensor

from tensorpress.codec.adaptive_coder import Stream, Symbols
from tensorpress.codec.bit_io import BitReader
from tensorpress.codec.quantizers import MAX_SYMBOL, StepQuantizer, UniformQuantizer
from tensorpress.codec.raw_values import from_bytes, to_bytes
from tensorpress.codec.static_coder import MAX_REACH, Tabled, decode_huffman, decode_static
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
class StoredTensor:
    """A decoded tensor, and what it takes.

    Attributes
    ----------
    values : Tensor
        On the CPU.
    storage : StepQuantizer, UniformQuantizer, Constant or {"raw", "half", "integers"}
        Quantized and entropy coded; one number; bit for bit; as float16; or as integers of
        variable length. How values were rounded is not recorded: a `UniformQuantizer` always
        says "nearest".
    symbols : ndarray of int32 or None
        Of a quantized tensor, its symbols.
    table_bits : float
        What of the file its description takes, its share in a table included.
    coded : float or Tabled
        What its values take, or what tells.
    """

    values: Tensor
    storage: Storage
    symbols: Symbols | None
    table_bits: float
    coded: float | Tabled

    @property
    def value_bits(self) -> float:
        """Bits of the file that its values take."""
        return self.coded.value_bits if isinstance(self.coded, Tabled) else self.coded


def decode_tensors(
    stream: Stream,
    payload: bytes,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[torch.dtype],
    coder: Coder = "range",
) -> list[StoredTensor]:
    """Decode what `tensorpress.codec.encode_tensors.encode_tensors` encoded; nothing may follow.

    Parameters
    ----------
    stream, payload : Stream, bytes
        From a file, and not trusted.
    shapes, dtypes : sequence
        Of the tensors that were encoded. They must be the caller's own, from a model: memory is
        allocated for them.
    coder : {"range", "huffman"}
        As they were encoded.

    Raises
    ------
    CorruptFileError
        If the bytes cannot be those of tensors with these shapes and types. Damage that leaves
        other valid values is for the checksum of the file to find.
    """
    stream.expect(sum(map(prod, shapes)))
    storages = StorageCoder(stream)
    read = [
        _read(stream, storages, coder, shape, dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    size = stream.number("tables") if any(entry.reach is not None for entry in read) else 0
    stream.end()
    reader = BitReader(payload)
    plain = {
        i: from_bytes(reader, entry.storage, shapes[i], dtypes[i])
        for i, entry in enumerate(read)
        if isinstance(entry.storage, str)
    }
    tables = BitReader(reader.take(size))
    rest, sizes = payload[reader.bytes_read :], list(map(prod, shapes))
    tabled = _decode_tabled(coder, tables, rest, read, sizes)
    tables.finish()
    found = []
    for i, entry in enumerate(read):
        if i in plain:
            entry = replace(entry, values=plain[i])
        elif i in tabled:
            entry = replace(
                entry,
                symbols=tabled[i].symbols,
                table_bits=entry.table_bits + tabled[i].table_bits,
                coded=tabled[i],
            )
        found.append(entry.stored(shapes[i], dtypes[i]))
    return found


@dataclass(frozen=True)
class _Read:
    """What the stream says of a tensor; `reach` is the largest symbol of a table to come."""

    storage: Storage
    table_bits: float
    symbols: Symbols | None = None
    coded: float | Tabled = 0.0
    reach: int | None = None
    values: Tensor | None = None

    def stored(self, shape: tuple[int, ...], dtype: torch.dtype) -> StoredTensor:
        """Return the tensor, whose symbols or values are known."""
        storage, symbols, values = self.storage, self.symbols, self.values
        coded = self.coded
        if isinstance(storage, Constant):
            values = torch.full(shape, storage.value, dtype=torch.float32).to(dtype)
        elif not isinstance(storage, str):
            values = _values(storage, torch.from_numpy(symbols), dtype).reshape(shape)
        elif values is not None:
            coded = 8.0 * len(to_bytes(values, storage))
        assert values is not None
        return StoredTensor(values, storage, symbols, self.table_bits, coded)


def _read(
    stream: Stream, storages: StorageCoder, coder: Coder, shape: tuple[int, ...], dtype: torch.dtype
) -> _Read:
    """Read how a tensor is stored, and its symbols if they are in the stream."""
    start = stream.bits
    storage = storages.code(dtype, shape)
    if isinstance(storage, (str, Constant)):
        return _Read(storage, stream.bits - start)
    if 0 in shape:
        return _Read(storage, stream.bits - start, np.empty(0, np.int32))
    if coder == "huffman":
        return _Read(storage, stream.bits - start, reach=quantizer_reach(storage, MAX_SYMBOL))
    if stream.number("static"):
        reach = quantizer_reach(storage, MAX_SYMBOL)
        if isinstance(storage, StepQuantizer):
            reach = stream.number("reach")
        if reach > MAX_REACH:
            raise CorruptFileError(f"a probability table has more than {MAX_REACH:,} levels")
        return _Read(storage, stream.bits - start, reach=reach)
    scale = storages.scale(shape)
    table_bits, start = stream.bits - start, stream.bits
    symbols = stream.symbols(shape, scale)
    return _Read(storage, table_bits, symbols, stream.bits - start)


def _decode_tabled(
    coder: Coder, tables: BitReader, data: bytes, read: Sequence[_Read], sizes: Sequence[int]
) -> dict[int, Tabled]:
    """Decode the symbols that are not in the stream, by the numbers of their tensors."""
    coming = {i: entry.reach for i, entry in enumerate(read) if entry.reach is not None}
    if coder == "range":
        found = decode_static(tables, data, [(reach, sizes[i]) for i, reach in coming.items()])
        return dict(zip(coming, found, strict=True))
    groups: dict[Storage, list[int]] = {}
    for i in coming:
        groups.setdefault(read[i].storage, []).append(i)
    pooled = decode_huffman(
        tables, data, [(coming[m[0]], [sizes[i] for i in m]) for m in groups.values()]
    )
    return {
        i: array
        for members, arrays in zip(groups.values(), pooled, strict=True)
        for i, array in zip(members, arrays, strict=True)
    }


def _values(quantizer: Quantizer, symbols: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the levels that symbols stand for."""
    reach = quantizer_reach(quantizer, MAX_SYMBOL)
    if isinstance(quantizer, UniformQuantizer):
        symbols = symbols + reach
    if symbols.numel():
        ends = torch.stack(symbols.aminmax())
        inside = (0, 2 * reach) if isinstance(quantizer, UniformQuantizer) else (-reach, reach)
        if ends[0] < inside[0] or ends[1] > inside[1]:
            raise CorruptFileError("a value exceeds the levels of its quantizer")
        if not bool(torch.isfinite(quantizer.values(ends, dtype)).all()):
            raise CorruptFileError(f"a level exceeds {dtype}")
    return quantizer.values(symbols, dtype)
