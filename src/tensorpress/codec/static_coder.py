"""Range coding and Huffman coding of symbols by static tables."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from constriction import stream

from tensorpress.codec.bit_io import BitReader, BitWriter, Symbols
from tensorpress.codec.huffman import HuffmanCode
from tensorpress.codec.read_budget import ReadBudget
from tensorpress.codec.static_tables import Prior, read_prior
from tensorpress.errors import CorruptFileError

MAX_COUNTS = 1 << 24
"""Most counts in all probability tables of a file; it bounds the memory of reading them."""

MAX_REACH = 1 << 15
"""Largest symbol of a probability table."""

_PRIOR_BYTES = 40  # memory per count while a table is made
_RECENT = 16  # last tables that are searched for the same one
_STATE_BYTES = 8  # of the encoder's interval
_MAX_SYMBOL_BYTES = 4  # the rarest symbol takes 24 bits and a little for rounding


def encode_range(arrays: Sequence[Symbols], priors: Sequence[Prior]) -> bytes:
    """Encode arrays of symbols in sequence, each with its table.

    Parameters
    ----------
    arrays : sequence of ndarray of int32
        Arrays of shape (size,). Every symbol has an entry in the table of its array.
    priors : sequence of Prior
        The table of each array.

    Returns
    -------
    bytes
        The stream. On average it is less than a byte longer than the symbols' information.

    References
    ----------
    .. [1] R. Bamler, "Understanding entropy coding with asymmetric numeral systems (ANS): a
       statistician's perspective", arXiv:2201.01741 (2022); the `constriction` library.

    Examples
    --------
    >>> import numpy as np
    >>> from tensorpress.codec.static_tables import parametric_prior
    >>> prior = parametric_prior(70, reach=32)
    >>> data = encode_range([np.array([0, -3, 2, 1], np.int32)], [prior])
    >>> decode_range(data, [4], [prior])[0].tolist()
    [0, -3, 2, 1]
    """
    encoder = stream.queue.RangeEncoder()
    for symbols, prior in zip(arrays, priors, strict=True):
        if symbols.size and len(prior.counts) > 1:
            encoder.encode(symbols - np.int32(prior.lowest), _categorical(prior))
    return _shortest_bytes(encoder)


def decode_range(data: bytes, sizes: Sequence[int], priors: Sequence[Prior]) -> list[Symbols]:
    """Decode what `encode_range` returned.

    Parameters
    ----------
    data : bytes
        The stream.
    sizes : sequence of int
        The number of symbols of each array.
    priors : sequence of Prior
        The table of each array.

    Returns
    -------
    list of ndarray of int32
        The arrays, each of shape (size,).

    Raises
    ------
    CorruptFileError
        If `encode_range` returns this stream for no symbols with these tables. Damage that gives
        other symbols is left to the checksum of the file.
    """
    coded = sum(n for n, prior in zip(sizes, priors, strict=True) if len(prior.counts) > 1)
    if len(data) > (_MAX_SYMBOL_BYTES * (coded + 2) if coded else 0):
        raise CorruptFileError("there are data after the coded values")
    words = np.frombuffer(data.ljust(-(-len(data) // 4) * 4, b"\0"), ">u4").astype(np.uint32)
    decoder = stream.queue.RangeDecoder(words)
    arrays = []
    for size, prior in zip(sizes, priors, strict=True):
        if size and len(prior.counts) > 1:
            try:
                indices = decoder.decode(_categorical(prior), size)
            except AssertionError as error:  # raised by constriction for an impossible stream
                raise CorruptFileError("the coded values are damaged") from error
            indices += np.int32(prior.lowest)
            arrays.append(indices)
        else:
            arrays.append(np.full(size, prior.lowest, np.int32))
    # The decoder does not tell how far it has read, so encode again, which is as fast.
    if encode_range(arrays, priors) != data:
        raise CorruptFileError("there are data after the coded values, or they are damaged")
    return arrays


def _categorical(prior: Prior) -> stream.model.Categorical:
    """Return constriction's model with exactly the counts of the table.

    With ``perfect=False``, constriction gives each of n symbols one count and distributes the other
    2**24 - n in proportion to the probabilities. Passed the counts less one, it rounds nothing.
    """
    return stream.model.Categorical((prior.counts - 1).astype(np.float64), perfect=False)


def _shortest_bytes(encoder: stream.queue.RangeEncoder) -> bytes:
    """Return the shortest bytes that decode correctly when followed by zeros."""
    data: bytes = encoder.get_compressed().astype(">u4").tobytes()
    words, (low, width) = encoder.pos()
    head, tail = data[: 4 * words], data[4 * words :]
    final = int.from_bytes(tail.ljust(_STATE_BYTES, b"\0"), "big")
    limit, end = 1 << (8 * _STATE_BYTES), low + width
    if final < low:  # the interval spans a carry, and constriction has carried into the head
        low, end = 0, end - limit
    # Take the point of [low, end) with the most trailing zero bytes.
    for zeros in range(8 * _STATE_BYTES, -1, -8):
        point = -(-low >> zeros) << zeros
        if point < min(end, limit):
            break
    last: bytes = point.to_bytes(_STATE_BYTES, "big")
    return (head + last).rstrip(b"\0")


@dataclass(frozen=True)
class TableSymbols:
    """The symbols of a tensor that were coded by a static table.

    Attributes
    ----------
    symbols : ndarray of int32
        Shape (size,).
    table_bits : float
        Bits of the table in the file, or the tensor's share of a common table.
    table : Prior or HuffmanCode
        The table.
    """

    symbols: Symbols
    table_bits: float
    table: Prior | HuffmanCode

    @property
    def value_bits(self) -> float:
        """The bits of the symbols; counting them takes as long as decoding."""
        return self.table.bits(self.symbols)


def encode_huffman(writer: BitWriter, groups: Sequence[Sequence[Symbols]]) -> bytes:
    """Encode groups of arrays, each group by one Huffman code that is written to `writer`."""
    streams = []
    for group in groups:
        pooled = np.concatenate(group)
        code = HuffmanCode.from_symbols(pooled)
        code.write(writer)
        streams.append(code.encode(pooled))
    return b"".join(streams)


def decode_huffman(
    tables: BitReader, data: bytes, groups: Sequence[tuple[int, Sequence[int]]]
) -> list[list[TableSymbols]]:
    """Decode what `encode_huffman` returned.

    Parameters
    ----------
    tables : BitReader
        The codes.
    data : bytes
        The streams.
    groups : sequence of (int, sequence of int)
        The largest symbol of each group, and the sizes of its arrays.

    Returns
    -------
    list of list of TableSymbols
        The arrays of each group.

    Raises
    ------
    CorruptFileError
        If `encode_huffman` returns such bytes for no such groups.
    """
    result = []
    for reach, sizes in groups:
        start = tables.position
        code = HuffmanCode.read(tables, reach)
        table_bits = (tables.position - start) / max(sum(sizes), 1)  # a value
        pooled, size = code.decode(data, sum(sizes))
        data = data[size:]
        arrays = np.split(pooled, np.cumsum(sizes)[:-1])
        result.append([TableSymbols(a, table_bits * a.size, code) for a in arrays])
    if data:
        raise CorruptFileError("there are data after the coded values")
    return result


def decode_static(
    tables: BitReader, data: bytes, arrays: Sequence[tuple[int, int]], budget: ReadBudget
) -> list[TableSymbols]:
    """Decode arrays of symbols that were range coded by one probability table each.

    Parameters
    ----------
    tables : BitReader
        The tables, as `write_prior` wrote them.
    data : bytes
        The stream of `encode_range`.
    arrays : sequence of (int, int)
        The largest symbol of each array, and its size.
    budget : ReadBudget
        The budget for tables; symbols were taken from it before.

    Raises
    ------
    CorruptFileError
        If the bytes do not encode such arrays, or exceed the budget.
    """
    priors: list[Prior] = []
    earlier: list[Prior] = []
    table_bits, counts = [], 0
    for reach, _ in arrays:
        start = tables.position
        budget.take(0, passing=_PRIOR_BYTES * (2 * reach + 1))
        priors.append(read_prior(tables, reach, earlier))
        table_bits.append(tables.position - start)
        if not any(priors[-1] is prior for prior in priors[-_RECENT - 1 : -1]):
            budget.take(priors[-1].counts.nbytes)
            budget.work(len(priors[-1].counts) // 2)  # two counts take the time of a symbol
        counts += len(priors[-1].counts)
        if counts > MAX_COUNTS:
            raise CorruptFileError(f"the probability tables have more than {MAX_COUNTS:,} counts")
    symbols = decode_range(data, [size for _, size in arrays], priors)
    return [TableSymbols(*each) for each in zip(symbols, table_bits, priors, strict=True)]
