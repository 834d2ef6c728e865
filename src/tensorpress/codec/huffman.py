"""Canonical Huffman codes."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tensorpress.codec.bit_io import BitReader, BitWriter, Symbols, unzigzag, zigzag
from tensorpress.errors import CorruptFileError

MAX_LENGTH = 56
"""Longest code word in bits: it fits a 64-bit window from any bit of a byte.

A Huffman code needs 57 bits only for more than 10**11 symbols.
"""

_CHUNK = 1 << 18  # symbols or bits per step, so that the arrays stay within the cache


def code_lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the code lengths of an optimal prefix code.

    Parameters
    ----------
    counts : ndarray of int64
        Counts of each symbol, shape (symbols,); symbols with count 0 get no code word.

    Returns
    -------
    ndarray of uint8
        Bits of each symbol's code word, shape (symbols,); 0 for no code word, and for a single
        symbol.

    References
    ----------
    .. [1] D. A. Huffman, "A method for the construction of minimum-redundancy codes",
       Proceedings of the IRE 40 (1952).

    Examples
    --------
    >>> import numpy as np
    >>> code_lengths(np.array([5, 1, 0, 2])).tolist()
    [1, 2, 0, 2]
    """
    # Merge the two rarest nodes, leaves or merged ones, until one is left.
    leaves = np.flatnonzero(counts).tolist()
    parents: dict[int, int] = {}
    heap = [(int(counts[leaf]), leaf) for leaf in leaves]
    heapq.heapify(heap)
    node = len(counts)
    while len(heap) > 1:
        (first, left), (second, right) = heapq.heappop(heap), heapq.heappop(heap)
        parents[left] = parents[right] = node
        heapq.heappush(heap, (first + second, node))
        node += 1
    # A symbol's code length is the depth of its leaf; parents have larger numbers than children.
    depths = {node - 1: 0}
    lengths = np.zeros(len(counts), np.uint8)
    for child in sorted(parents, reverse=True):
        depths[child] = depths[parents[child]] + 1
    for leaf in leaves:
        lengths[leaf] = depths.get(leaf, 0)
    return lengths


@dataclass(frozen=True, eq=False)
class HuffmanCode:
    """A canonical Huffman code of consecutive symbols.

    Code words of one length are consecutive binary numbers in the order of their symbols, and
    shorter words come first, so that the lengths determine the code.

    Parameters
    ----------
    lowest : int
        The symbol of the first entry.
    lengths : ndarray of uint8
        Bits of each symbol's code word, shape (symbols,); 0 for none, at most `MAX_LENGTH`. Kraft's
        sum is 1, or the only entry is a 0 for a single symbol, which needs no bits.

    References
    ----------
    .. [1] S. Han, H. Mao, W. J. Dally, "Deep Compression: Compressing deep neural networks with
       pruning, trained quantization and Huffman coding", ICLR (2016), section 4.

    Examples
    --------
    >>> import numpy as np
    >>> symbols = np.array([0, 0, 0, -1, 2, 0], np.int32)
    >>> code = HuffmanCode.from_symbols(symbols)
    >>> code.lengths.tolist(), code.encode(symbols).hex()
    ([2, 1, 0, 2], '16')
    >>> decoded, size = code.decode(code.encode(symbols), count=6)
    >>> decoded.tolist(), size
    ([0, 0, 0, -1, 2, 0], 1)
    """

    lowest: int
    lengths: NDArray[np.uint8]

    @classmethod
    def from_symbols(cls, symbols: Symbols) -> "HuffmanCode":
        """Return the optimal code for at least one symbol."""
        lowest = int(symbols.min())
        return cls(lowest, code_lengths(np.bincount(symbols - lowest)))

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        """The entries by length, then by symbol: the order of their code words."""
        entries = np.flatnonzero(self.lengths)
        return entries[np.argsort(self.lengths[entries], kind="stable")]

    @cached_property
    def _starts(self) -> NDArray[np.uint64]:
        """The code words in the order of `_order`, shifted to the top of 64 bits."""
        # A word of n bits is followed by the next one 2^(64 - n) later.
        widths = 1 << (64 - self.lengths[self._order].astype(np.uint64))
        starts: NDArray[np.uint64] = np.cumsum(widths) - widths  # the last sum wraps to 0
        return starts

    def bits(self, symbols: Symbols) -> int:
        """Return the number of bits that the symbols take."""
        return int(self.lengths[symbols - self.lowest].sum(dtype=np.int64))

    def write(self, writer: BitWriter) -> None:
        """Write the first symbol and the lengths."""
        writer.varint(zigzag(self.lowest))
        writer.varint(len(self.lengths))
        if len(self.lengths) > 1:
            writer.levels(self.lengths)

    @classmethod
    def read(cls, reader: BitReader, reach: int) -> "HuffmanCode":
        """Read a code that `write` wrote, of symbols from -`reach` to `reach`.

        Raises
        ------
        CorruptFileError
            If it has other symbols, or its lengths are not those of a complete prefix code.
        """
        lowest, size = unzigzag(reader.varint()), reader.varint()
        if size == 0 or lowest < -reach or lowest + size - 1 > reach:
            raise CorruptFileError("a Huffman code exceeds the levels of its quantizer")
        lengths = reader.levels(size, MAX_LENGTH) if size > 1 else [0]
        # Kraft's sum of a complete code is sum_s 2^-n_s = 1.
        if size > 1 and sum(1 << (MAX_LENGTH - n) for n in lengths if n) != 1 << MAX_LENGTH:
            raise CorruptFileError("a Huffman code is not complete")
        return cls(lowest, np.array(lengths, np.uint8))

    def encode(self, symbols: Symbols) -> bytes:
        """Return the code words of the symbols, padded with zero bits to whole bytes."""
        if len(self.lengths) == 1:
            return b""
        words = np.zeros(len(self.lengths), np.uint64)
        words[self._order] = self._starts
        rest: NDArray[np.uint8] = np.zeros(0, np.uint8)
        chunks = []
        for start in range(0, len(symbols), _CHUNK):
            entries = symbols[start : start + _CHUNK] - self.lowest
            lengths = self.lengths[entries].astype(np.int64)
            # The index of every bit within its word, and the bit: the words start at bit 63.
            begins = np.cumsum(lengths) - lengths
            places = np.arange(lengths.sum()) - np.repeat(begins, lengths)
            bits = (np.repeat(words[entries], lengths) >> (63 - places).astype(np.uint64)) & 1
            # Whole bytes are done; the rest goes before the bits of the next chunk.
            rest = np.concatenate([rest, bits.astype(np.uint8)])
            whole = len(rest) // 8 * 8
            chunks.append(np.packbits(rest[:whole]).tobytes())
            rest = rest[whole:]
        return b"".join(chunks) + np.packbits(rest).tobytes()

    def decode(self, data: bytes, count: int) -> tuple[Symbols, int]:
        """Decode the first symbols of a byte string.

        Parameters
        ----------
        data : bytes
            The code words that `encode` returned, and anything after them.
        count : int
            The number of symbols.

        Returns
        -------
        ndarray of int32
            The symbols, shape (count,).
        int
            The number of bytes they took.

        Raises
        ------
        CorruptFileError
            If the data end early, or the bits that pad the last byte are not zero.
        """
        if len(self.lengths) == 1:
            return np.full(count, self.lowest, np.int32), 0
        if count > 8 * len(data):
            raise CorruptFileError("the coded values end early")
        symbols = np.empty(count, np.int32)
        distinct_lengths, firsts = np.unique(self.lengths[self._order], return_index=True)
        done = position = 0
        for windows, offset in _windows(data):
            # The length of the word that would start at each bit, from the first word of each
            # length.
            rows = np.searchsorted(self._starts[firsts], windows, side="right") - 1
            lengths = distinct_lengths[rows].tolist()
            # The starts of words: each one is where the last word ends.
            begins: list[int] = []
            place = position - offset
            while place < len(lengths) and done + len(begins) < count:
                begins.append(place)
                place += lengths[place]
            # The symbol of a word: the last one whose code word is not above the window.
            ranks = np.searchsorted(self._starts, windows[begins], side="right") - 1
            symbols[done : done + len(begins)] = self._order[ranks] + self.lowest
            done, position = done + len(begins), offset + place
            if done == count:
                break
        size = -(-position // 8)
        if done < count or size > len(data):
            raise CorruptFileError("the coded values end early")
        if count and data[size - 1] & ((1 << (-position % 8)) - 1):
            raise CorruptFileError("the last byte of the coded values is damaged")
        return symbols, size


def _windows(data: bytes) -> Iterator[tuple[NDArray[np.uint64], int]]:
    """Yield 64-bit windows from every bit, in chunks with their first bit; 57 bits are valid."""
    octets = np.frombuffer(data + bytes(8), np.uint8)
    shifts = np.arange(8, dtype=np.uint64)
    for start in range(0, len(data), _CHUNK // 8):
        size = min(_CHUNK // 8, len(data) - start)
        window = np.zeros(size, np.uint64)
        for k in range(8):
            window = window << np.uint64(8) | octets[start + k : start + k + size]
        yield (window[:, None] << shifts).ravel(), 8 * start
