"""Lists of tensors into a stream and a payload: how each is stored, and the values."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tensorpress.codec.adaptive_coder import Stream, Symbols, nearest_scale
from tensorpress.codec.bit_io import BitWriter
from tensorpress.codec.quantizers import StepQuantizer, UniformQuantizer
from tensorpress.codec.raw_values import exact_storage, to_bytes
from tensorpress.codec.static_coder import MAX_COUNTS, MAX_REACH, encode_huffman, encode_range
from tensorpress.codec.static_tables import Prior, write_prior
from tensorpress.codec.storage import (
    Coder,
    Constant,
    Quantizer,
    Storage,
    StorageCoder,
    quantizer_reach,
)
from tensorpress.errors import InvalidArgumentError

_LARGE, _SAMPLE = 1 << 22, 1 << 20  # values: static tables are faster; what their gain is seen on
_NONE: Symbols = np.empty(0, np.int32)
_WORTH = 0.99  # of the static size, for a large tensor
_STATIC_START = 40  # bits that the first static table costs beside what it saves


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
        The payload: what is not in the stream. Shapes and types are in neither;
        `tensorpress.codec.decode_tensors.decode_tensors` needs them.

    Raises
    ------
    InvalidArgumentError
        If the arguments do not fit together, or a tensor cannot be stored as asked; the message
        gives its number, from 0.

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
            streams = encode_range(*map(list, zip(*self._static, strict=True)))
        tables = self._tables.to_bytes() if self._groups or self._static else b""
        if tables:
            self._stream.number("tables", len(tables))
        return b"".join([*self._plain, tables, streams])

    def _add_range(self, quantizer: Quantizer, symbols: Symbols, shape: tuple[int, ...]) -> None:
        """Code symbols adaptively, or by a table if that is better."""
        reach = quantizer_reach(quantizer, int(np.abs(symbols).max()))
        static = self._static_bits(symbols, reach) + (0 if self._static else _STATIC_START)
        stream, mark = self._stream, self._stream.mark()
        if symbols.size <= _LARGE or self._gains(symbols, shape, reach):
            start = stream.bits
            stream.number("static", 0)
            scale = nearest_scale(symbols)
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
        stream.symbols((rows, *shape[1:]), nearest_scale(sample), sample)
        adaptive = stream.bits - start
        stream.back_to(mark)
        return adaptive < _WORTH * self._static_bits(sample, reach)


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
