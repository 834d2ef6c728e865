"""Encodes lists of tensors into a stream and a payload."""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from tensorpress.codec.adaptive_coder import Stream, nearest_scale
from tensorpress.codec.bit_io import BitWriter, Symbols
from tensorpress.codec.exact_floats import SPLITS, encode_floats
from tensorpress.codec.quantizers import StepQuantizer, UniformQuantizer
from tensorpress.codec.raw_values import exact_storage, to_bytes
from tensorpress.codec.static_coder import MAX_COUNTS, MAX_REACH, encode_huffman, encode_range
from tensorpress.codec.static_tables import Prior, write_prior
from tensorpress.codec.storage import (
    Coder,
    Constant,
    Quantizer,
    Request,
    Storage,
    StorageCoder,
    quantizer_reach,
)
from tensorpress.errors import InvalidArgumentError

_LARGE = 1 << 17  # above this many values, adaptive coding must gain enough to pay
_SAMPLE = 1 << 15  # values of a large tensor on which the gain is estimated
_MAX_RATIO = 0.99  # largest ratio of adaptive to static size, for a large tensor
_STATIC_START = 40  # extra bits of a file's first static table
_NO_SYMBOLS: Symbols = np.empty(0, np.int32)


def encode_tensors(
    stream: Stream,
    tensors: Sequence[Tensor],
    quantizers: Sequence[Request],
    coder: Coder = "range",
) -> bytes:
    """Encode tensors in few bytes.

    Parameters
    ----------
    stream : Stream
        The stream, which receives the storage of each tensor and adaptively coded values.
    tensors : sequence of Tensor
        Tensors of any shapes, types and devices.
    quantizers : sequence of UniformQuantizer, StepQuantizer, "half", "coded" or None
        One entry per tensor: quantize it, store it as float16, or keep every bit (None), in fewer
        bytes for floating-point values ("coded", which also allows NaN). A tensor whose values are
        all equal to one float32 number, or integers all 0 or all 1, is stored as that number,
        unless it has at most two values that are neither 0 nor 1.
    coder : {"range", "huffman"}
        The coder of the quantized values. Range coding is adaptive, except if a static probability
        table makes a tensor smaller, or adaptive coding of a large tensor gains less than 1 %. One
        Huffman code serves all tensors with the same quantizer.

    Returns
    -------
    bytes
        The payload: everything that is not in the stream.
        `tensorpress.codec.decode_tensors.decode_tensors` needs the shapes and types in addition.

    Raises
    ------
    InvalidArgumentError
        If the arguments do not fit each other, or a tensor cannot be stored as requested; the
        message has its index, from 0.

    Examples
    --------
    >>> from tensorpress.codec.decode_tensors import decode_tensors
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
    """Adds tensors to a stream and a payload."""

    def __init__(self, stream: Stream, coder: Coder, values: int) -> None:
        self._stream, self._coder = stream, coder
        stream.expect(values)
        self._storages = StorageCoder(stream)
        self._raw: list[bytes] = []
        self._tables = BitWriter()
        self._groups: dict[Quantizer, list[Symbols]] = {}
        self._static: list[tuple[Symbols, Prior]] = []
        self._histograms: list[Prior] = []

    def add(self, tensor: Tensor, quantizer: Request) -> None:
        """Encode one more tensor."""
        shape = tuple(tensor.shape)
        storage, symbols = _quantize(tensor, quantizer)
        self._storages.code(tensor.dtype, shape, storage)
        if storage == "coded":
            self._raw.append(encode_floats(tensor))
        elif isinstance(storage, str):
            self._raw.append(to_bytes(tensor, storage))
        elif not isinstance(storage, Constant) and symbols.size:
            if self._coder == "huffman":
                self._groups.setdefault(storage, []).append(symbols)
            else:
                self._add_range(storage, symbols, shape)

    def payload(self) -> bytes:
        """Return everything that is not in the stream."""
        streams = encode_huffman(self._tables, list(self._groups.values()))
        if self._static:
            streams = encode_range(*map(list, zip(*self._static, strict=True)))
        tables = self._tables.to_bytes() if self._groups or self._static else b""
        if tables:
            self._stream.number("tables", len(tables))
        return b"".join([*self._raw, tables, streams])

    def _add_range(self, quantizer: Quantizer, symbols: Symbols, shape: tuple[int, ...]) -> None:
        """Code symbols adaptively, or by a table if that is better."""
        reach = quantizer_reach(quantizer, int(np.abs(symbols).max()))
        static_bits = self._static_bits(symbols, reach) + (0 if self._static else _STATIC_START)
        stream, mark = self._stream, self._stream.mark()
        # Code adaptively first; undo that if a table takes fewer bits.
        if symbols.size <= _LARGE or self._gains(symbols, shape, reach):
            start = stream.bits
            stream.number("static", 0)
            scale = nearest_scale(symbols)
            self._storages.scale(shape, scale)
            stream.symbols(shape, scale, symbols)
            if stream.bits - start <= static_bits:
                return
            stream.rewind(mark)
            self._storages.undo_scale(shape)
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
        """Return the bits that symbols and their best table would take."""
        if reach > MAX_REACH:
            return float("inf")
        return write_prior(BitWriter(), symbols, reach, list(self._histograms))[1]

    def _gains(self, symbols: Symbols, shape: tuple[int, ...], reach: int) -> bool:
        """Return whether adaptive coding makes the first rows of a large tensor much smaller."""
        row_size = symbols.size // shape[0]
        rows = _SAMPLE // row_size
        sample = symbols[: rows * row_size]
        if not sample.size:
            return False
        stream, mark = self._stream, self._stream.mark()
        start = stream.bits
        stream.symbols((rows, *shape[1:]), nearest_scale(sample), sample)
        adaptive_bits = stream.bits - start
        stream.rewind(mark)
        return adaptive_bits < _MAX_RATIO * self._static_bits(sample, reach)


def _quantize(tensor: Tensor, quantizer: Request) -> tuple[Storage, Symbols]:
    """Return the storage of a tensor, and its symbols if it is quantized."""
    constant = _constant_value(tensor)
    if constant is not None:
        return Constant(constant), _NO_SYMBOLS
    if quantizer == "coded":
        return ("coded" if tensor.dtype in SPLITS else exact_storage(tensor)), _NO_SYMBOLS
    if quantizer is None or quantizer == "half":
        return quantizer or exact_storage(tensor), _NO_SYMBOLS
    if isinstance(quantizer, UniformQuantizer):
        # Both roundings have the same levels, so they share an entry in the list of quantizers.
        storage: Quantizer = replace(quantizer, rounding="nearest")
        symbols = quantizer.indices(tensor) - quantizer.levels // 2
    else:
        storage, symbols = quantizer, quantizer.symbols(tensor)
    if symbols.numel() and not bool(symbols.any()):
        return Constant(0.0), _NO_SYMBOLS
    return storage, symbols.cpu().reshape(-1).numpy()


def _constant_value(tensor: Tensor) -> float | None:
    """Return the float32 number that all values of a tensor equal, or None if it does not pay."""
    if tensor.is_complex() or not tensor.numel():
        return None
    value = float(tensor.detach().reshape(-1)[0])
    if value not in (0.0, 1.0) and (tensor.numel() <= 2 or not tensor.is_floating_point()):
        return None
    if not isfinite(value):
        return None
    with np.errstate(over="ignore"):
        single = float(np.float32(value))
    if single != value or not bool((tensor == value).all()):
        return None
    return None if value == 0 and bool(torch.signbit(tensor).any()) else value
