"""Interleaved rANS coding of integers by static tables: a coder whose decoder is fast.

References
----------
.. [1] J. Duda, "Asymmetric numeral systems", arXiv:1311.2540 (2013).
.. [2] F. Giesen, "Interleaved entropy coders", arXiv:1402.3392 (2014).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorpress.codec.bit_io import BitReader, BitWriter
from tensorpress.codec.compiled import compile_function
from tensorpress.codec.static_tables import (
    normalize_counts,
    read_counts,
    round_counts,
    write_counts,
)
from tensorpress.errors import CorruptFileError

PRECISION = 14
"""Bits of a probability: the counts of a table sum to 2**14."""

MAX_SYMBOLS = 1 << 12
"""Most symbols of a table."""

MAX_SYMBOL = (1 << 16) - 1
"""Largest symbol."""

_LANES, _MANY = 8, 1 << 12  # interleaved states (a power of 2), at least this many symbols
_MANTISSA = 3  # bits of a count in a table after the leading one
_LOWEST_STATE = 1 << 16

Values = NDArray[np.uint16]
Contexts = NDArray[np.uint8]


def encode_rans(symbols: Values, contexts: Contexts, tables: int) -> bytes | None:
    """Encode symbols by one table per context; the tables are included.

    Parameters
    ----------
    symbols : ndarray of uint16
        Shape (size,), at least one.
    contexts : ndarray of uint8
        The number of each symbol's table, shape (size,); empty if there is one table.
    tables : int
        The number of tables.

    Returns
    -------
    bytes or None
        None if a table would have more than 2**12 symbols.

    Examples
    --------
    >>> data = encode_rans(np.array([3, 3, 4, 3], np.uint16), np.empty(0, np.uint8), 1)
    >>> decode_rans(BitReader(data), 4, np.empty(0, np.uint8), 1).tolist()
    [3, 3, 4, 3]
    """
    writer, counts = BitWriter(), []
    for k in range(tables):
        part = symbols[contexts == k] if tables > 1 else symbols
        histogram = np.bincount(part)
        if np.count_nonzero(histogram) > MAX_SYMBOLS:
            return None
        lowest = int(histogram.nonzero()[0][0]) if part.size else 0
        rounded = round_counts(histogram[lowest:] if part.size else np.ones(1, np.int64), _MANTISSA)
        write_counts(writer, rounded, lowest, _MANTISSA)
        counts.append((lowest, rounded))
    words = np.empty(0, np.uint16)
    if any(np.count_nonzero(rounded) > 1 for _, rounded in counts):
        starts, frequencies, _ = _tables(counts)
        words = np.empty(symbols.size + 2 * _LANES, np.uint16)
        lanes = _LANES if symbols.size >= _MANY else 1
        first = _compiled(_encode)(symbols, contexts, starts, frequencies, words, lanes)
        words = words[first:]
    header = writer.to_bytes()
    sizes = BitWriter()
    sizes.varint(len(header))
    sizes.varint(len(words))
    return sizes.to_bytes() + header + words.astype("<u2").tobytes()


def decode_rans(reader: BitReader, size: int, contexts: Contexts, tables: int) -> Values:
    """Read what `encode_rans` returned.

    Parameters
    ----------
    reader : BitReader
        The bytes, which are untrusted.
    size : int
        The number of symbols.
    contexts : ndarray of uint8
        The number of each symbol's table, shape (size,); empty if there is one table.
    tables : int
        The number of tables.

    Raises
    ------
    CorruptFileError
        If the bytes are not what `encode_rans` returns for this number of symbols.
    """
    header, count = reader.varint(), reader.varint()
    bits = BitReader(reader.take(header))
    counts = [read_counts(bits, 0, MAX_SYMBOL) for _ in range(tables)]
    bits.finish()
    if any(np.count_nonzero(rounded) > MAX_SYMBOLS for _, rounded in counts):
        raise CorruptFileError(f"a probability table has more than {MAX_SYMBOLS:,} symbols")
    if all(np.count_nonzero(rounded) == 1 for _, rounded in counts):
        if count:
            raise CorruptFileError("there are data after the coded values")
        each = np.array([lowest for lowest, _ in counts], np.uint16)
        return each[contexts] if tables > 1 else np.full(size, each[0])
    words = np.frombuffer(reader.take(2 * count), "<u2").astype(np.uint16)
    lanes = _LANES if size >= _MANY else 1
    if count < 2 * lanes:
        raise CorruptFileError("the coded values end early")
    result = np.empty(size, np.uint16)
    if not _compiled(_decode)(words, contexts, *_tables(counts), result, lanes):
        raise CorruptFileError("the coded values are damaged")
    return result


def _tables(counts: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], Values]:
    """Return the start and the frequency of each symbol, and the symbol of each point."""
    size = max(lowest + len(rounded) for lowest, rounded in counts)
    frequencies = np.zeros((len(counts), size), np.int64)
    for row, (lowest, rounded) in zip(frequencies, counts, strict=True):
        present = rounded > 0
        row[lowest : lowest + len(rounded)][present] = normalize_counts(
            rounded[present], 1, PRECISION
        )
    starts = np.cumsum(frequencies, axis=1) - frequencies
    symbols = np.arange(size, dtype=np.uint16)
    return starts, frequencies, np.stack([np.repeat(symbols, row) for row in frequencies])


def _encode(
    symbols: Any, contexts: Any, starts: Any, frequencies: Any, words: Any, lanes: int
) -> int:
    """Fill the end of `words`; return their start."""
    # A state x, 2^16 <= x < 2^32, takes a symbol of frequency f and start s, of 2^14 in all:
    # x <- (x div f) 2^14 + x mod f + s, after its low 16 bits were written if it would overflow.
    states = np.full(lanes, _LOWEST_STATE, np.int64)
    at = len(words)
    for i in range(len(symbols) - 1, -1, -1):
        context = contexts[i] if len(contexts) else 0
        symbol, lane = symbols[i], i & lanes - 1
        frequency = frequencies[context, symbol]
        state = states[lane]
        if state >= frequency << 32 - PRECISION:
            at -= 1
            words[at] = state & 0xFFFF
            state >>= 16
        quotient = state // frequency
        state = (quotient << PRECISION) + state - quotient * frequency + starts[context, symbol]
        states[lane] = state
    for lane in range(lanes - 1, -1, -1):
        at -= 2
        words[at], words[at + 1] = states[lane] >> 16, states[lane] & 0xFFFF
    return at


def _decode(
    words: Any,
    contexts: Any,
    starts: Any,
    frequencies: Any,
    points: Any,
    symbols: Any,
    lanes: int,
) -> bool:
    """Fill `symbols` from words; False if `_encode` gives these words for no symbols."""
    states = np.empty(lanes, np.int64)
    for lane in range(lanes):
        states[lane] = np.int64(words[2 * lane]) << 16 | np.int64(words[2 * lane + 1])
    at = 2 * lanes
    for i in range(len(symbols)):
        context = contexts[i] if len(contexts) else 0
        lane = i & lanes - 1
        # The point x mod 2^14 is a symbol's: x <- f (x div 2^14) + x mod 2^14 - s.
        point = states[lane] & (1 << PRECISION) - 1
        symbol = points[context, point]
        state = (
            frequencies[context, symbol] * (states[lane] >> PRECISION)
            + point
            - starts[context, symbol]
        )
        if state < _LOWEST_STATE:
            if at >= len(words):
                return False
            state = state << 16 | np.int64(words[at])
            at += 1
        states[lane] = state
        symbols[i] = symbol
    return bool(at == len(words)) and bool((states == _LOWEST_STATE).all())


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Unchecked: symbols and points are within tables by construction, and `_decode` checks the end.
    return compile_function(function, checked=False)
