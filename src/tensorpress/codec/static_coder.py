"""Range coding and Huffman coding of symbols by tables that do not adapt."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from constriction import stream
from numpy.typing import NDArray

from tensorpress.codec.bit_io import BitReader, BitWriter
from tensorpress.codec.huffman import HuffmanCode
from tensorpress.codec.static_tables import Prior, read_prior
from tensorpress.errors import CorruptFileError

Symbols = NDArray[np.int32]

_STATE_BYTES = 8  # of the encoder's interval
_MOST_BYTES = 4  # of one symbol: the rarest takes 24 bits and a little for rounding


def encode_range(arrays: Sequence[Symbols], priors: Sequence[Prior]) -> bytes:
    """Encode arrays of symbols, one after the other, each under its own table.

    Parameters
    ----------
    arrays : sequence of ndarray of int32
        Rank 1. Every symbol has an entry in the table of its array.
    priors : sequence of Prior
        One for each array.

    Returns
    -------
    bytes
        The stream: about the sum of the symbols' information, and less than a byte more on average.

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
            encoder.encode(symbols - np.int32(prior.lowest), _model(prior))
    return _shortest(encoder)


def decode_range(data: bytes, sizes: Sequence[int], priors: Sequence[Prior]) -> list[Symbols]:
    """Decode what `encode_range` returned.

    Parameters
    ----------
    data : bytes
        The stream.
    sizes : sequence of int
        Number of symbols of each array.
    priors : sequence of Prior
        The tables they were encoded with.

    Raises
    ------
    CorruptFileError
        If the stream is not what `encode_range` returns for any symbols with these tables. Damage
        that leaves other symbols is for the file's checksum to find.
    """
    coded = sum(n for n, prior in zip(sizes, priors, strict=True) if len(prior.counts) > 1)
    if len(data) > (_MOST_BYTES * (coded + 2) if coded else 0):
        raise CorruptFileError("there are data after the coded values")
    words = np.frombuffer(data.ljust(-(-len(data) // 4) * 4, b"\0"), ">u4").astype(np.uint32)
    decoder = stream.queue.RangeDecoder(words)
    arrays = []
    for size, prior in zip(sizes, priors, strict=True):
        if size and len(prior.counts) > 1:
            try:
                indices = decoder.decode(_model(prior), size)
            except AssertionError as error:  # what constriction raises for an impossible stream
                raise CorruptFileError("the coded values are damaged") from error
            indices += np.int32(prior.lowest)
            arrays.append(indices)
        else:
            arrays.append(np.full(size, prior.lowest, np.int32))
    # The decoder does not say how far it has read; the encoder is as fast, and exact.
    if encode_range(arrays, priors) != data:
        raise CorruptFileError("there are data after the coded values, or they are damaged")
    return arrays


def _model(prior: Prior) -> stream.model.Categorical:
    """Return the model whose counts are exactly those of the table.

    With ``perfect=False``, constriction gives each of n symbols one count and shares the other
    2**24 - n out in proportion to the probabilities: counts less one leave nothing to round.
    """
    return stream.model.Categorical((prior.counts - 1).astype(np.float64), perfect=False)


def _shortest(encoder: stream.queue.RangeEncoder) -> bytes:
    """Return the shortest bytes that decode correctly when followed by zeros.

    Any point of the encoder's final interval does; the one with most trailing zero bytes is taken.
    """
    data: bytes = encoder.get_compressed().astype(">u4").tobytes()
    words, (low, width) = encoder.pos()
    head, tail = data[: 4 * words], data[4 * words :]
    sealed = int.from_bytes(tail.ljust(_STATE_BYTES, b"\0"), "big")
    limit, end = 1 << (8 * _STATE_BYTES), low + width
    if sealed < low:  # the interval spans a carry, and constriction has carried into the head
        low, end = 0, end - limit
    for zeros in range(8 * _STATE_BYTES, -1, -8):
        point = -(-low >> zeros) << zeros
        if point < min(end, limit):
            break
    last: bytes = point.to_bytes(_STATE_BYTES, "big")
    return (head + last).rstrip(b"\0")


MAX_COUNTS = 1 << 24
"""Most counts in all probability tables of a file, so that reading them takes bounded memory."""

MAX_REACH = 1 << 15
"""Largest symbol of a probability table."""


@dataclass(frozen=True)
class Tabled:
    """Symbols of a tensor, the table they were coded by, and the bits that it takes."""

    symbols: Symbols
    table_bits: float
    table: Prior | HuffmanCode

    @property
    def value_bits(self) -> float:
        """Bits that the symbols take; counted when asked for, which takes as long as decoding."""
        return self.table.bits(self.symbols)


def encode_huffman(writer: BitWriter, groups: Sequence[Sequence[Symbols]]) -> bytes:
    """Return the streams of groups of arrays, a code for each group, which goes to `writer`."""
    streams = []
    for group in groups:
        pooled = np.concatenate(group)
        code = HuffmanCode.of(pooled)
        code.write(writer)
        streams.append(code.encode(pooled))
    return b"".join(streams)


def decode_huffman(
    tables: BitReader, data: bytes, groups: Sequence[tuple[int, Sequence[int]]]
) -> list[list[Tabled]]:
    """Decode groups, each given by its largest symbol and the sizes of its arrays.

    Raises
    ------
    CorruptFileError
        If the bytes are not those of such groups.
    """
    found = []
    for reach, sizes in groups:
        start = tables.position
        code = HuffmanCode.read(tables, reach)
        table = (tables.position - start) / max(sum(sizes), 1)
        pooled, used = code.decode(data, sum(sizes))
        data = data[used:]
        arrays = np.split(pooled, np.cumsum(sizes)[:-1])
        found.append([Tabled(a, table * a.size, code) for a in arrays])
    if data:
        raise CorruptFileError("there are data after the coded values")
    return found


def decode_static(
    tables: BitReader, data: bytes, arrays: Sequence[tuple[int, int]]
) -> list[Tabled]:
    """Decode arrays of symbols, each given by its largest symbol and its size.

    Raises
    ------
    CorruptFileError
        If the bytes are not those of such arrays.
    """
    priors: list[Prior] = []
    earlier: list[Prior] = []
    table_bits, counts = [], 0
    for reach, _ in arrays:
        start = tables.position
        priors.append(read_prior(tables, reach, earlier))
        table_bits.append(tables.position - start)
        counts += len(priors[-1].counts)
        if counts > MAX_COUNTS:
            raise CorruptFileError(f"the probability tables have more than {MAX_COUNTS:,} counts")
    symbols = decode_range(data, [size for _, size in arrays], priors)
    return [Tabled(*each) for each in zip(symbols, table_bits, priors, strict=True)]
