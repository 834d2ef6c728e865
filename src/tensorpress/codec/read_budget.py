"""The memory and the work that reading a file may take, counted before they are taken."""

import os

from tensorpress.errors import CorruptFileError, InvalidArgumentError

MAX_BYTES = "TENSORPRESS_MAX_BYTES"
"""The environment variable with the bytes that reading any file may take, for trusted files."""

_FREE_BYTES, _BYTES_PER_BYTE = 64 << 20, 64
_FREE_SYMBOLS, _SYMBOLS_PER_BYTE = 1 << 21, 256
_PER_MODEL_BYTE = 4  # the copy of a model, the decoded values, their symbols, one to spare

MAX_MEMORY = 1 << 62
"""A number of bytes that no machine has."""

ROW_BYTES = 1 << 10
"""Memory that a tensor takes whatever its size: its row in the header and its Python objects."""


class ReadBudget:
    """A budget that every allocation whose size a file determines is taken from, in advance.

    Parameters
    ----------
    size : int
        Bytes of the file. By default, reading may take 64 MiB and 64 bytes for each of these.
    max_bytes : int, optional
        The bytes that reading may take instead; else those of the variable `MAX_BYTES`, if it is
        set.
    model_bytes : int
        Bytes of a model that the file is read into: its caller trusts these, so reading may take
        four times as many in addition, and as long as they need.

    Examples
    --------
    >>> budget = ReadBudget(100)
    >>> budget.take(60 << 20)
    >>> budget.take(60 << 20)
    Traceback (most recent call last):
    tensorpress.errors.CorruptFileError: its 100 bytes would take more than 67,115,264 in memory: \
give max_bytes= if you trust the file
    """

    def __init__(self, size: int, max_bytes: int | None = None, model_bytes: int = 0) -> None:
        max_bytes = _max_bytes_everywhere() if max_bytes is None else max_bytes
        default = _FREE_BYTES + _BYTES_PER_BYTE * size
        self._size = size
        self._limit = (default if max_bytes is None else max_bytes) + _PER_MODEL_BYTE * model_bytes
        self._bytes = self._limit
        bounded = max_bytes is None and not model_bytes
        self._symbols = _FREE_SYMBOLS + _SYMBOLS_PER_BYTE * size if bounded else None

    def take(self, count: int, passing: int = 0) -> None:
        """Take bytes that stay allocated, and check that `passing` more are there meanwhile.

        Raises
        ------
        CorruptFileError
            If they are not there.
        """
        self._bytes -= count
        if self._bytes < passing:
            raise CorruptFileError(
                f"its {self._size:,} bytes would take more than {self._limit:,} in memory: give "
                "max_bytes= if you trust the file"
            )

    def give_back(self, count: int) -> None:
        """Give back bytes that are free again."""
        self._bytes += count

    def work(self, symbols: int) -> None:
        """Take the work of decoding symbols one by one.

        Raises
        ------
        CorruptFileError
            If so small a file has no right to it.
        """
        if self._symbols is None:
            return
        self._symbols -= symbols
        if self._symbols < 0:
            raise CorruptFileError(
                f"its {self._size:,} bytes are said to hold far too many values: give max_bytes= "
                "if you trust the file"
            )


def _max_bytes_everywhere() -> int | None:
    value = os.environ.get(MAX_BYTES)
    if value is None or value.isdecimal():
        return None if value is None else int(value)
    raise InvalidArgumentError(f"{MAX_BYTES} is a number of bytes, not {value!r}")
