"""Lists of tensors in a stream and a payload: how each is stored, and the values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tensorpress.codec import range_coder
from tensorpress.codec.bits import BitReader, BitWriter
from tensorpress.codec.plain import exact_storage, from_bytes, to_bytes
from tensorpress.codec.priors import Prior, write_prior
from tensorpress.codec.quantize import UniformQuantizer
from tensorpress.codec.specs import (
    Coder,
    Constant,
    Quantizer,
    Storage,
    StorageCoder,
)
from tensorpress.codec.steps import MAX_SYMBOL, StepQuantizer
from tensorpress.codec.stream import Stream, Symbols, scale_of
from tensorpress.codec.tables import (
    MAX_COUNTS,
    MAX_REACH,
    Tabled,
    decode_huffman,
    decode_static,
    encode_huffman,
)
from tensorpress.errors import CorruptFileError, InvalidArgumentError

_LARGE, _SAMPLE = 1 << 22, 1 << 20  # values: static tables are faster; what their gain is seen on
_NONE: Symbols = np.empty(0, np.int32)
_WORTH = 0.99  # of the static size, for a large tensor
_STATIC_START = 40  # bits that the first static table costs beside what it saves


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


def entropy_bits(symbols: Tensor) -> float:
    """Return the empirical entropy of the values of a tensor, in bits a value.

    Parameters
    ----------
    symbols : Tensor
        Integers, any shape; level numbers for instance.

    Examples
    --------
    >>> entropy_bits(torch.tensor([0, 1, 2, 2]))
    1.5
    """
    counts = torch.unique(symbols, return_counts=True)[1].double()
    shares = counts / counts.sum()
    return float((shares * (1 / shares).log2()).sum())


def encode_tensors(
    stream: Stream,
    tensors: Sequence[Tensor],
    quantizers: Sequence[Quantizer | Literal["half"] | None],
    coder: Coder = "range",
) -> bytes:
    """Encode tensors in few bytes.

    Parameters
    ----------
    stream : Stream
        Where the numbers go that say how each is stored, and the values that are coded
        adaptively.
    tensors : sequence of Tensor
        Any shapes, types and devices.
    quantizers : sequence of UniformQuantizer, StepQuantizer, "half" or None
        One for each tensor: quantize it; store it as float16; or keep every bit. A tensor that
        holds one float32 number alone, or zeros in integers, is stored as that, unquantized;
        a single number that is neither 0 nor 1, and two of them, as was asked.
    coder : {"range", "huffman"}
        Coder of the quantized values. Range coding is adaptive, or by a table a tensor
        where that is smaller, or a large tensor gains less than 1 %; one Huffman code serves all
        tensors with the same quantizer.

    Returns
    -------
    bytes
        The payload: what is not in the stream. Shapes and types are in neither: `decode_tensors`
        needs them.

    Raises
    ------
    InvalidArgumentError
        If the arguments do not fit together, or a tensor cannot be stored as asked; the message
        gives its number, from 0.

    Examples
    --------
    >>> tensors = [torch.linspace(-1, 1, 9), torch.tensor(7)]
    >>> stream = Stream()
    >>> payload = encode_tensors(stream, tensors, [StepQuantizer(-16), None])
    >>> decoded = decode_tensors(
    ...     Stream(stream.finish()), payload, [(9,), ()], [torch.float32, torch.int64]
    ... )
    >>> all(torch.equal(a, b.values) for a, b in zip(tensors, decoded))
    True
    """
    if len(tensors) != len(quantizers):
        raise InvalidArgumentError(f"{len(tensors)} tensors but {len(quantizers)} quantizers")
    encoder = _Encoder(stream, coder, sum(tensor.numel() for tensor in tensors))
    for i, (tensor, quantizer) in enumerate(zip(tensors, quantizers, strict=True)):
        try:
            encoder.add(tensor, quantizer)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"tensor {i}: {error}") from error
    return encoder.payload()


class _Encoder:
    """Tensors on their way into a stream and a payload."""

    def __init__(self, stream: Stream, coder: Coder, values: int) -> None:
        self._stream, self._coder = stream, coder
        stream.expect(values)
        self._storages = StorageCoder(stream)
        self._plain: list[bytes] = []
        self._tables = BitWriter()
        self._groups: dict[Quantizer, list[Symbols]] = {}
        self._static: list[tuple[Symbols, Prior]] = []
        self._histograms: list[Prior] = []

    def add(self, tensor: Tensor, asked: Quantizer | Literal["half"] | None) -> None:
        """Encode one more tensor."""
        shape = tuple(tensor.shape)
        storage, symbols = _stored(tensor, asked)
        self._storages.code(tensor.dtype, shape, storage)
        if isinstance(storage, str):
            self._plain.append(to_bytes(tensor, storage))
        elif not isinstance(storage, Constant) and symbols.size:
            if self._coder == "huffman":
                self._groups.setdefault(storage, []).append(symbols)
            else:
                self._add_range(storage, symbols, shape)

    def payload(self) -> bytes:
        """Return all that is not in the stream."""
        streams = encode_huffman(self._tables, list(self._groups.values()))
        if self._static:
            streams = range_coder.encode(*map(list, zip(*self._static, strict=True)))
        tables = self._tables.to_bytes() if self._groups or self._static else b""
        if tables:
            self._stream.number("tables", len(tables))
        return b"".join([*self._plain, tables, streams])

    def _add_range(self, quantizer: Quantizer, symbols: Symbols, shape: tuple[int, ...]) -> None:
        """Code symbols adaptively, or by a table if that is better."""
        reach = _reach(quantizer, int(np.abs(symbols).max()))
        static = self._static_bits(symbols, reach) + (0 if self._static else _STATIC_START)
        stream, mark = self._stream, self._stream.mark()
        if symbols.size <= _LARGE or self._gains(symbols, shape, reach):
            start = stream.bits
            stream.number("static", 0)
            scale = scale_of(symbols)
            self._storages.scale(shape, scale)
            stream.symbols(shape, scale, symbols)
            if stream.bits - start <= static:
                return
            stream.back_to(mark)
            self._storages.forget_scale(shape)
        stream.number("static", 1)
        if isinstance(quantizer, StepQuantizer):
            stream.number("reach", reach)
        prior, _ = write_prior(self._tables, symbols, reach, self._histograms)
        self._static.append((symbols, prior))
        if sum(len(prior.counts) for _, prior in self._static) > MAX_COUNTS:
            raise InvalidArgumentError(
                f"the probability tables have more than {MAX_COUNTS:,} counts: take larger steps"
            )

    def _static_bits(self, symbols: Symbols, reach: int) -> float:
        if reach > MAX_REACH:
            return float("inf")
        return write_prior(BitWriter(), symbols, reach, list(self._histograms))[1]

    def _gains(self, symbols: Symbols, shape: tuple[int, ...], reach: int) -> bool:
        """Return whether the first rows of a large tensor are much smaller coded adaptively."""
        rows = _SAMPLE // (symbols.size // shape[0])
        sample = symbols[: rows * (symbols.size // shape[0])]
        if not sample.size:
            return False
        stream, mark = self._stream, self._stream.mark()
        start = stream.bits
        stream.symbols((rows, *shape[1:]), scale_of(sample), sample)
        adaptive = stream.bits - start
        stream.back_to(mark)
        return adaptive < _WORTH * self._static_bits(sample, reach)


def decode_tensors(
    stream: Stream,
    payload: bytes,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[torch.dtype],
    coder: Coder = "range",
) -> list[StoredTensor]:
    """Decode what `encode_tensors` encoded; nothing may follow.

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
        return _Read(storage, stream.bits - start, reach=_reach(storage, MAX_SYMBOL))
    if stream.number("static"):
        reach = _reach(storage, MAX_SYMBOL)
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
    reach = _reach(quantizer, MAX_SYMBOL)
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


def _reach(quantizer: Quantizer, largest: int) -> int:
    """Return the largest symbol: of the quantizer, or if that has none, `largest`."""
    return quantizer.levels // 2 if isinstance(quantizer, UniformQuantizer) else largest


def _stored(tensor: Tensor, asked: Quantizer | Literal["half"] | None) -> tuple[Storage, Symbols]:
    """Return how a tensor is stored, and its symbols if it is quantized."""
    constant = _constant(tensor)
    if constant is not None:
        return Constant(constant), _NONE
    if asked is None or asked == "half":
        return asked or exact_storage(tensor), _NONE
    if isinstance(asked, UniformQuantizer):
        # The levels are the same for both roundings: one entry in the list of quantizers.
        storage: Quantizer = replace(asked, rounding="nearest")
        symbols = asked.indices(tensor) - asked.levels // 2
    else:
        storage, symbols = asked, asked.symbols(tensor)
    if symbols.numel() and not bool(symbols.any()):
        return Constant(0.0), _NONE
    return storage, symbols.cpu().reshape(-1).numpy()


def _constant(tensor: Tensor) -> float | None:
    """Return the float32 number that all values of a tensor equal, if it pays to say so."""
    if tensor.is_complex() or not tensor.numel():
        return None
    value = float(tensor.detach().reshape(-1)[0])
    if value not in (0.0, 1.0) and (tensor.numel() <= 2 or not tensor.is_floating_point()):
        return None
    with np.errstate(over="ignore"):
        single = float(np.float32(value))
    if single != value or not bool((tensor == value).all()):
        return None
    return None if value == 0 and bool(torch.signbit(tensor).any()) else value
