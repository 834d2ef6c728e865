"""Symbols coded by tables that do not adapt, all in one place: static range coding and Huffman."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tensorpress.codec import range_coder
from tensorpress.codec.bits import BitReader, BitWriter
from tensorpress.codec.huffman import HuffmanCode
from tensorpress.codec.priors import Prior, read_prior
from tensorpress.errors import CorruptFileError

Symbols = NDArray[np.int32]

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
    symbols = range_coder.decode(data, [size for _, size in arrays], priors)
    return [Tabled(*each) for each in zip(symbols, table_bits, priors, strict=True)]
