"""Bit streams for the tables of a file: integers in exactly the bits that they need."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorpress.errors import CorruptFileError

Symbols = NDArray[np.int32]
"""Signed numbers of quantization levels; 0 is the value 0."""

_VARINT_GROUPS = 10  # ten groups of seven bits hold every 64-bit integer


def zigzag(n: int) -> int:
    """Return the unsigned integer of a signed one: 0, -1, 1, -2, 2 become 0, 1, 2, 3, 4.

    Examples
    --------
    >>> [zigzag(n) for n in (0, -1, 1, -2, 2)]
    [0, 1, 2, 3, 4]
    """
    return 2 * n if n >= 0 else -2 * n - 1


def unzigzag(n: int) -> int:
    """Return the signed integer that `zigzag` maps to `n`.

    Examples
    --------
    >>> [unzigzag(n) for n in range(5)]
    [0, -1, 1, -2, 2]
    """
    return -(n // 2) - 1 if n % 2 else n // 2


def varint_bits(n: int) -> int:
    """Return the number of bits that `BitWriter.varint` takes for `n`.

    Examples
    --------
    >>> varint_bits(127), varint_bits(128)
    (8, 16)
    """
    return 8 * max(1, -(-n.bit_length() // 7))


def level_codes(levels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return codes for non-negative integers that vary little between neighbours, except zeros.

    The code of a zero is 1. The code of another integer is 0 if it equals the last nonzero one (0
    at the start), and otherwise 1 plus the zigzagged difference. In unary, a code takes one bit
    more than its value.

    Examples
    --------
    >>> level_codes(np.array([3, 3, 0, 2, 4])).tolist()
    [7, 0, 1, 2, 5]
    """
    present = levels > 0
    steps = np.diff(levels[present].astype(np.int64), prepend=0)
    codes = np.ones(len(levels), np.int64)
    codes[present] = np.where(steps > 0, 2 * steps + 1, -2 * steps)
    return codes


class BitWriter:
    """A writer that appends integers of any width, most significant bit first.

    Examples
    --------
    >>> writer = BitWriter()
    >>> writer.bits(5, width=3)
    >>> writer.varint(300)
    >>> BitReader(writer.to_bytes()).bits(3)
    5
    """

    def __init__(self) -> None:
        self._digits: list[str] = []

    @property
    def size(self) -> int:
        """The number of bits written."""
        return sum(map(len, self._digits))

    def bits(self, value: int, width: int) -> None:
        """Append the `width` low bits of `value`, which must be below 2**width."""
        if width:
            self._digits.append(f"{value:0{width}b}")

    def unary(self, value: int) -> None:
        """Append `value` ones and a zero."""
        self._digits.append("1" * value + "0")

    def varint(self, value: int) -> None:
        """Append a non-negative integer in groups of seven bits, low group first (LEB128)."""
        while value >= 0x80:
            self.bits(value & 0x7F | 0x80, 8)
            value >>= 7
        self.bits(value, 8)

    def levels(self, levels: NDArray[np.integer[Any]]) -> None:
        """Append non-negative integers as `level_codes`."""
        for code in level_codes(levels).tolist():
            self.unary(code)

    def to_bytes(self) -> bytes:
        """Return everything written, padded with zero bits to whole bytes."""
        digits = "".join(self._digits)
        size = -(-len(digits) // 8)
        return int(digits.ljust(8 * size, "0") or "0", 2).to_bytes(size, "big")


class BitReader:
    """Reads what `BitWriter` wrote, from untrusted bytes.

    Every method raises `CorruptFileError` if the bytes end early or a value is out of bounds.

    Examples
    --------
    >>> reader = BitReader(bytes([0b1010_0000]))
    >>> reader.bits(3)
    5
    >>> reader.finish()
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0  # in bits

    @property
    def position(self) -> int:
        """The number of bits read."""
        return self._position

    @property
    def bytes_read(self) -> int:
        """The number of bytes that were read at least in part."""
        return -(-self._position // 8)

    def bits(self, width: int) -> int:
        """Read an unsigned integer of `width` bits."""
        end = self._position + width
        if end > 8 * len(self._data):
            raise CorruptFileError("the data end early")
        window = int.from_bytes(self._data[self._position // 8 : -(-end // 8)], "big")
        self._position = end
        return (window >> (-end % 8)) & ((1 << width) - 1)

    def unary(self, limit: int) -> int:
        """Read a unary integer that must not exceed `limit`."""
        for value in range(limit + 1):
            if not self.bits(1):
                return value
        raise CorruptFileError(f"a number in the tables exceeds its limit of {limit}")

    def varint(self) -> int:
        """Read an integer of at most 64 bits that `BitWriter.varint` wrote."""
        value = 0
        for group in range(_VARINT_GROUPS):
            byte = self.bits(8)
            value |= (byte & 0x7F) << (7 * group)
            if byte < 0x80:
                if value >> 64:
                    break
                return value
        raise CorruptFileError("a number in the tables exceeds 64 bits")

    def levels(self, count: int, limit: int) -> list[int]:
        """Read `count` integers from 0 to `limit` that `BitWriter.levels` wrote."""
        levels, previous = [], 0
        for _ in range(count):
            code = self.unary(2 * limit + 1)
            if code == 1:
                levels.append(0)
                continue
            previous += unzigzag(code - 1) if code else 0
            if not 0 < previous <= limit:
                raise CorruptFileError(f"a number in the tables is not in 0..{limit}")
            levels.append(previous)
        return levels

    def take(self, count: int) -> bytes:
        """Read `count` whole bytes; the position must be at the start of a byte."""
        start = self._position // 8
        if count > len(self._data) - start:
            raise CorruptFileError("the data end early")
        self._position += 8 * count
        return self._data[start : start + count]

    def finish(self) -> None:
        """Check that only zero bits that pad the last byte are left."""
        remaining = 8 * len(self._data) - self._position
        if remaining >= 8 or self.bits(remaining):
            raise CorruptFileError("there are data after the end")
