"""Lists of tensors as two byte strings: how each is stored, and the values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tensorpress.codec import range_coder
from tensorpress.codec.bits import BitReader, BitWriter
from tensorpress.codec.huffman import HuffmanCode
from tensorpress.codec.plain import exact_storage, from_bytes, to_bytes
from tensorpress.codec.priors import Prior, write_prior
from tensorpress.codec.quantize import UniformQuantizer
from tensorpress.codec.specs import (
    CODERS,
    MAX_COUNTS,
    Coder,
    Storage,
    TensorSpec,
    reach,
    read_specs,
    write_head,
)
from tensorpress.errors import InvalidArgumentError

__all__ = ["Coder", "EncodedTensors", "decode_tensors", "encode_tensors", "entropy_bits"]

Symbols = NDArray[np.int32]
Quantized = dict[int, tuple[UniformQuantizer, Symbols]]  # by the numbers of the tensors

_NONE: Symbols = np.empty(0, np.int32)


@dataclass(frozen=True)
class EncodedTensors:
    """Tensors, encoded.

    Attributes
    ----------
    spec : bytes
        How each is stored, and the tables of the entropy coder.
    payload : bytes
        The values.
    bits : list of float
        Bits of each tensor in both: of its values, and of its table or its share in one, by
        numbers of values. What is missing to the sum is a few bytes for all tensors together.
    """

    spec: bytes
    payload: bytes
    bits: list[float]


def entropy_bits(indices: Tensor) -> float:
    """Return the empirical entropy of the values of a tensor, in bits a value.

    Parameters
    ----------
    indices : Tensor
        Integers, any shape; level numbers for instance.

    Examples
    --------
    >>> entropy_bits(torch.tensor([0, 1, 2, 2]))
    1.5
    """
    counts = torch.unique(indices, return_counts=True)[1].double()
    shares = counts / counts.sum()
    return float((shares * (1 / shares).log2()).sum())


def encode_tensors(
    tensors: Sequence[Tensor],
    quantizers: Sequence[UniformQuantizer | Literal["half"] | None],
    coder: Coder = "range",
) -> EncodedTensors:
    """Encode tensors in few bytes.

    Parameters
    ----------
    tensors : sequence of Tensor
        Any shapes, types and devices.
    quantizers : sequence of UniformQuantizer, "half" or None
        One for each tensor: quantize it; store it as float16; or keep every bit.
    coder : {"range", "huffman"}
        Coder of the quantized values. Range coding fits a table to each tensor; one Huffman code
        serves all tensors with the same quantizer.

    Returns
    -------
    EncodedTensors
        Shapes and types are not in it: `decode_tensors` needs them.

    Raises
    ------
    InvalidArgumentError
        If the arguments do not fit together, or a tensor cannot be stored as asked; the message
        gives its number, from 0.

    Examples
    --------
    >>> tensors = [torch.linspace(-1, 1, 9), torch.tensor(7)]
    >>> encoded = encode_tensors(tensors, [UniformQuantizer(8, 1.0), None])
    >>> decoded = decode_tensors(
    ...     encoded.spec, encoded.payload, [(9,), ()], [torch.float32, torch.int64]
    ... )
    >>> all(torch.equal(a, b) for a, b in zip(tensors, decoded))
    True
    """
    if coder not in CODERS:
        raise InvalidArgumentError(f"coder must be 'range' or 'huffman', not {coder!r}")
    if len(tensors) != len(quantizers):
        raise InvalidArgumentError(f"{len(tensors)} tensors but {len(quantizers)} quantizers")
    stored = []
    for i, (tensor, quantizer) in enumerate(zip(tensors, quantizers, strict=True)):
        try:
            stored.append(_store(tensor, quantizer))
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"tensor {i}: {error}") from error
    storages = [storage for storage, _, _ in stored]
    quantized = {
        i: (storage, symbols)
        for i, (storage, _, symbols) in enumerate(stored)
        if isinstance(storage, UniformQuantizer) and symbols.size
    }
    writer = BitWriter()
    write_head(writer, coder, storages)
    encode = _encode_range if coder == "range" else _encode_huffman
    coded, bits = encode(writer, quantized)
    payload = b"".join([*(data for _, data, _ in stored), coded])
    shares = [bits.get(i, 8.0 * len(data)) for i, (_, data, _) in enumerate(stored)]
    return EncodedTensors(writer.to_bytes(), payload, shares)


def decode_tensors(
    spec: bytes,
    payload: bytes,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[torch.dtype],
) -> list[Tensor]:
    """Decode what `encode_tensors` returned.

    Parameters
    ----------
    spec, payload : bytes
        From a file, and not trusted.
    shapes, dtypes : sequence
        Of the tensors that were encoded. They must be the caller's own, from a model: memory is
        allocated for them.

    Returns
    -------
    list of Tensor
        On the CPU.

    Raises
    ------
    CorruptFileError
        If the bytes cannot be those of tensors with these shapes and types. Damage that leaves
        other valid values is for the checksum of the file to find.
    """
    specs = read_specs(spec, shapes, dtypes)
    reader = BitReader(payload)
    tensors: dict[int, Tensor] = {}
    for i, entry in enumerate(specs):
        if not isinstance(entry.storage, UniformQuantizer):
            tensors[i] = from_bytes(reader, entry.storage, shapes[i], dtypes[i])
    coded = payload[reader.bytes_read :]
    symbols = _decode_symbols(coded, specs, [prod(shape) for shape in shapes])
    for i, entry in enumerate(specs):
        if isinstance(entry.storage, UniformQuantizer):
            indices = torch.from_numpy(symbols.get(i, _NONE)) + reach(entry.storage)
            tensors[i] = entry.storage.values(indices, dtypes[i]).reshape(shapes[i])
    return [tensors[i] for i in range(len(specs))]


def _store(
    tensor: Tensor, quantizer: UniformQuantizer | Literal["half"] | None
) -> tuple[Storage, bytes, Symbols]:
    """Return the storage of a tensor, its bytes if it is not quantized, its symbols if it is."""
    if isinstance(quantizer, UniformQuantizer):
        indices = quantizer.indices(tensor).cpu().reshape(-1)
        # The levels are the same for both roundings: one entry in the list of storages.
        return replace(quantizer, rounding="nearest"), b"", indices.numpy() - reach(quantizer)
    storage = quantizer or exact_storage(tensor)
    return storage, to_bytes(tensor, storage), _NONE


def _encode_range(writer: BitWriter, quantized: Quantized) -> tuple[bytes, dict[int, float]]:
    """Write a table for each array and return the stream and the bits of each."""
    earlier: list[Prior] = []
    priors, bits = [], {}
    for i, (quantizer, symbols) in quantized.items():
        prior, bits[i] = write_prior(writer, symbols, reach(quantizer), earlier)
        priors.append(prior)
    if sum(len(prior.counts) for prior in priors) > MAX_COUNTS:
        raise InvalidArgumentError(
            f"the probability tables of {len(priors):,} tensors have more than {MAX_COUNTS:,} "
            "counts: take fewer levels"
        )
    return range_coder.encode([symbols for _, symbols in quantized.values()], priors), bits


def _encode_huffman(writer: BitWriter, quantized: Quantized) -> tuple[bytes, dict[int, float]]:
    """Write a code for each quantizer and return the streams and the bits of each array."""
    groups: dict[UniformQuantizer, list[int]] = {}
    for i, (quantizer, _) in quantized.items():
        groups.setdefault(quantizer, []).append(i)
    streams, bits = [], {}
    for members in groups.values():
        pooled = np.concatenate([quantized[i][1] for i in members])
        code = HuffmanCode.of(pooled)
        start = writer.size
        code.write(writer)
        table = (writer.size - start) / pooled.size
        streams.append(code.encode(pooled))
        for i in members:
            symbols = quantized[i][1]
            bits[i] = code.bits(symbols) + table * symbols.size
    return b"".join(streams), bits


def _decode_symbols(
    data: bytes, specs: Sequence[TensorSpec], sizes: Sequence[int]
) -> dict[int, Symbols]:
    """Decode the arrays of symbols; those of one Huffman code share a stream."""
    priors: dict[int, Prior] = {}
    groups: dict[HuffmanCode, list[int]] = {}
    for i, spec in enumerate(specs):
        if isinstance(spec.model, Prior):
            priors[i] = spec.model
        elif spec.model is not None:
            groups.setdefault(spec.model, []).append(i)
    arrays: dict[int, Symbols] = {}
    for code, members in groups.items():
        ends = np.cumsum([sizes[i] for i in members])
        pooled, used = code.decode(data, int(ends[-1]))
        arrays.update(zip(members, np.split(pooled, ends[:-1]), strict=True))
        data = data[used:]
    decoded = range_coder.decode(data, [sizes[i] for i in priors], list(priors.values()))
    return arrays | dict(zip(priors, decoded, strict=True))
