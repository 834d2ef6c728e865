"""The adaptive arithmetic coder: one stream of numbers and symbols, in both directions."""

from collections.abc import Callable
from functools import cache
from math import log2, prod
from types import FunctionType
from typing import Any

import numpy as np

from tensorpress.codec import binary_coder, context_model
from tensorpress.codec.binary_coder import HIGH, LOW, MODE, POSITION, VALUE, WRITING
from tensorpress.codec.bit_io import Symbols, unzigzag, zigzag
from tensorpress.codec.compiled import compile_function
from tensorpress.codec.context_tables import NUMBER_COUNTERS, NUMBERS, initial_state
from tensorpress.errors import CorruptFileError

SCALES = 63
"""Number of scales: initial expected magnitudes of a tensor, half an octave apart."""

_STATE_BYTES = 4
_MANY = 1 << 14  # symbols from which importing a compiler pays
_ROOM = 1 << 10  # bytes into which any number fits
_INLINE = ("code_bit", "update_counter", "code_bit_by_mixer")  # functions called for every bit


class Stream:
    """An adaptive arithmetic coder that writes a stream or, if `data` is passed, reads one.

    Every method takes the value to write and returns it. When reading, it ignores the argument and
    returns the value in the stream. So one description of a format serves both directions. The
    coder computes with integers only, so its streams are the same on every machine.

    Parameters
    ----------
    data : bytes, optional
        A stream that `finish` returned. It is not trusted.

    References
    ----------
    .. [1] G. N. N. Martin, "Range encoding: an algorithm for removing redundancy from a digitised
       message", Video & Data Recording Conference (1979).
    .. [2] M. Mahoney, "Adaptive weighing of context models for lossless data compression",
       Florida Tech. TR CS-2005-16 (2005): mixing in the logistic domain.

    Examples
    --------
    >>> writer = Stream()
    >>> [writer.number("rank", n) for n in (5, 5, 4)]
    [5, 5, 4]
    >>> data = writer.finish()
    >>> reader = Stream(data)
    >>> [reader.number("rank") for _ in range(3)], len(data)
    ([5, 5, 4], 2)
    """

    def __init__(self, data: bytes | None = None) -> None:
        self._buffer = bytearray(_ROOM) if data is None else bytearray(data)
        self.writing = data is None
        """Whether the stream is written instead of read."""
        self._state: Any = list(initial_state())
        self._names: dict[str, int] = {}
        self._code: Callable[..., bool] = context_model.code_symbols
        if data is None:
            self._state[MODE] = WRITING
        else:
            start = data[:_STATE_BYTES].ljust(_STATE_BYTES, b"\0")
            self._state[VALUE] = int.from_bytes(start, "big")
            self._state[POSITION] = _STATE_BYTES

    @property
    def bits(self) -> float:
        """The information coded so far, in bits."""
        settled = int(self._state[POSITION]) - (0 if self.writing else _STATE_BYTES)
        return 8 * (settled + _STATE_BYTES) - log2(int(self._state[HIGH] - self._state[LOW]) + 1)

    def number(self, name: str, value: int = 0) -> int:
        """Code a number from 0 to 2**24 - 2.

        The coder learns the lengths of numbers from earlier ones of the same name.

        Raises
        ------
        ValueError
            If there are more than 64 names.
        """
        self._make_room()
        index = self._names.setdefault(name, len(self._names))
        if index >= NUMBERS:
            raise ValueError(f"there are counters for only {NUMBERS} kinds of numbers")
        first = context_model.NUMBER_START + index * NUMBER_COUNTERS
        return binary_coder.code_number(self._state, self._buffer, first, value)

    def signed(self, name: str, value: int = 0) -> int:
        """Code a number of either sign, below 2**23 in magnitude."""
        return unzigzag(self.number(name, zigzag(value)))

    def choice(self, count: int, value: int = 0) -> int:
        """Code one of `count` equally likely numbers from 0 on; `count` is at most 2**16."""
        self._make_room()
        # Bisection: does the number lie in the upper half? P = upper half / count.
        low = 0
        while count > 1:
            half = count // 2
            p = (count - half << 16) // count
            upper = binary_coder.code_bit(self._state, self._buffer, p, int(value - low >= half))
            low, count = (low + half, count - half) if upper else (low, half)
        return low

    def word(self, value: int = 0) -> int:
        """Code any 32 bits without a model."""
        high = self.choice(1 << 16, value >> 16)
        return high << 16 | self.choice(1 << 16, value & 0xFFFF)

    def symbols(
        self, shape: tuple[int, ...], scale: int, symbols: Symbols | None = None
    ) -> Symbols:
        """Code the symbols of a tensor, from -2**23 to 2**23.

        Parameters
        ----------
        shape : tuple of int
            Shape of the tensor: rows, columns or channels, places in the plane. Neighbouring
            symbols, and symbols of one row or column, are expected to have similar magnitudes.
        scale : int
            Initial expected magnitude, in half octaves; `nearest_scale` returns the best.
        symbols : ndarray of int32, optional
            The symbols in row-major order, shape (size,); not needed when reading.

        Returns
        -------
        ndarray of int32
            The symbols, shape (size,).

        Raises
        ------
        CorruptFileError
            If the stream ends early.
        """
        if not self.writing:
            return self._run(np.zeros(prod(shape), np.int32), shape, scale)
        assert symbols is not None
        room = 4 * symbols.size + _ROOM
        mark = self.mark()
        while True:
            self._make_room(room)
            result = self._run(symbols, shape, scale)
            if self._state[POSITION] <= len(self._buffer):
                return result
            self.rewind(mark)  # the buffer was too small
            room *= 4

    def expect(self, symbols: int) -> None:
        """Use compiled code if enough symbols will follow; the bytes are the same."""
        if symbols >= _MANY:
            self._state = np.array(self._state, np.int64)
            self._code = _compile_code_symbols(checked=not self.writing)

    def mark(self) -> Any:
        """Return the coder's state, for `rewind`."""
        return self._state.copy()

    def rewind(self, mark: Any) -> None:
        """Undo everything written since `mark` returned this state."""
        self._state = mark.copy()

    def finish(self) -> bytes:
        """Return the shortest stream from which everything written can be read."""
        settled = bytes(self._buffer[: int(self._state[POSITION])])
        return settled + self._shortest_end()

    def check_end(self) -> None:
        """Check that everything was read: the stream is what `finish` returns for these values.

        Raises
        ------
        CorruptFileError
            If bytes are missing or left over.
        """
        settled = int(self._state[POSITION]) - _STATE_BYTES
        rest, end = self._buffer[settled:], self._shortest_end()
        if len(rest) < len(end):
            raise CorruptFileError("the coded values end early")
        if rest != end:
            raise CorruptFileError("there are data after the coded values")

    def _shortest_end(self) -> bytes:
        """Return the fewest bytes that put the stream into the coder's interval."""
        low, high = int(self._state[LOW]), int(self._state[HIGH])
        # Take the point of the interval with the most trailing zero bytes, which are not written.
        for zeros in range(8 * _STATE_BYTES, -1, -8):
            point = -(-low >> zeros) << zeros
            if point <= high:
                break
        return point.to_bytes(_STATE_BYTES, "big")[: _STATE_BYTES - zeros // 8]

    def _make_room(self, size: int = _ROOM) -> None:
        """Grow the buffer to hold `size` more bytes; when reading, check that it has not ended."""
        if self.writing:
            missing = self._state[POSITION] + size - len(self._buffer)
            if missing > 0:
                # A new one, as a debugger may still hold frames that look into the old one.
                self._buffer = self._buffer + bytes(missing + len(self._buffer) // 2)
        elif self._state[POSITION] > len(self._buffer) + _ROOM:
            raise CorruptFileError("the coded values end early")

    def _run(self, symbols: Symbols, shape: tuple[int, ...], scale: int) -> Symbols:
        """Code symbols from the present state, in plain Python or compiled."""
        sizes = _plane_sizes(shape)
        means = np.zeros(_mean_count(sizes), np.int64)
        # The tensor's initial mean magnitude: 2^(scale / 2 - 8), 16 bits after the point.
        means[:2] = (362 if scale % 2 else 256) << scale // 2, context_model.INITIAL_AGE
        if self._code is context_model.code_symbols:
            values: Any = symbols.tolist()
            complete = self._code(self._state, self._buffer, values, sizes, means.tolist())
        else:
            values = symbols if not self.writing else symbols.copy()
            buffer = np.frombuffer(self._buffer, np.uint8)
            complete = self._code(self._state, buffer, values, sizes, means)
        if not complete:
            raise CorruptFileError("the coded values end early")
        return np.asarray(values, np.int32)


def nearest_scale(symbols: Symbols) -> int:
    """Return the scale nearest to the mean magnitude of symbols, from 0 to 62.

    Scale s stands for a mean magnitude of 2**(s / 2 - 8).

    Examples
    --------
    >>> nearest_scale(np.array([0, 0], np.int32)), nearest_scale(np.array([-4, 4], np.int32))
    (0, 20)
    """
    total = int(np.abs(symbols).sum(dtype=np.int64))
    mean = max((total << 16) // max(symbols.size, 1), context_model.MIN_MEAN)
    # round(2 (log2 mean + 8)), from eighths of octaves: 64 is the logarithm of 2^-8.
    return min(context_model.logarithm(initial_state(), mean) - 64 + 2 >> 2, SCALES - 1)


@cache
def _compile_code_symbols(*, checked: bool) -> Callable[..., bool]:
    """Return `code_symbols`, compiled with all that it calls; reading checks bounds."""
    names: dict[str, Any] = {"__name__": context_model.__name__}
    for module in (binary_coder, context_model):
        for name, function in vars(module).items():
            if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                copy = FunctionType(function.__code__, names, name)
                copy.__qualname__ = f"{name}_read" if checked else f"{name}_written"
                names[name] = compile_function(copy, inline=name in _INLINE, checked=checked)
            elif not name.startswith("__"):
                names.setdefault(name, function)
    compiled: Callable[..., bool] = names["code_symbols"]
    return compiled


def symbol_work_bytes(shape: tuple[int, ...]) -> int:
    """Return the memory besides symbols that `Stream.symbols` takes for a shape."""
    return 8 * _mean_count(_plane_sizes(shape))


def _mean_count(sizes: tuple[int, int, int, int]) -> int:
    """Return the size of the list of means; see `context_model.code_symbols`."""
    return 4 + 2 * (sizes[1] + sizes[2] * sizes[3])


def _plane_sizes(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the rows, channels, height and width of a tensor's shape."""
    if len(shape) < 4:
        rows, channels, width = (*shape, 1, 1, 1)[:3]
        return rows, channels, 1, width
    return shape[0], shape[1], prod(shape[2:-1]), shape[-1]
