"""The memory and work that reading a file may take, counted before they are taken."""

import os

from tensorpress.errors import CorruptFileError, InvalidArgumentError

MAX_BYTES = "TENSORPRESS_MAX_BYTES"
"""The environment variable with the bytes that reading may take, for trusted files."""

_FREE_BYTES, _BYTES_PER_BYTE = 64 << 20, 64
_FREE_SYMBOLS, _SYMBOLS_PER_BYTE = 1 << 21, 256
_PER_MODEL_BYTE = 4  # the copy of a model, decoded values, their symbols, one to spare

MAX_MEMORY = 1 << 62
"""More bytes than any machine has."""

ROW_BYTES = 1 << 10
"""Fixed memory per tensor: its row in the header and its Python objects."""

_TRUST = "pass max_bytes= (--max-bytes in the shell) if you trust the file"


class ReadBudget:
    """A budget from which every allocation of a size set by a file is taken in advance.

    Parameters
    ----------
    size : int
        Bytes of the file. By default, reading may take 64 MiB plus 64 times the size.
    max_bytes : int, optional
        The bytes that reading may take instead; by default the value of `MAX_BYTES`, if it is set.
    model_bytes : int
        Bytes of a model into which the file is read. Reading may take four times as many in
        addition, and any time.

    Attributes
    ----------
    limit : int
        The bytes that reading may take in all.

    Examples
    --------
    >>> budget = ReadBudget(100)
    >>> budget.take(60 << 20)
    >>> budget.take(60 << 20)
    Traceback (most recent call last):
    tensorpress.errors.CorruptFileError: its 100 bytes would take more than 67,115,264 in memory: \
pass max_bytes= (--max-bytes in the shell) if you trust the file
    """

    def __init__(self, size: int, max_bytes: int | None = None, model_bytes: int = 0) -> None:
        max_bytes = _max_bytes_everywhere() if max_bytes is None else max_bytes
        self._size = size
        self.limit = _FREE_BYTES + _BYTES_PER_BYTE * size if max_bytes is None else max_bytes
        self.limit += _PER_MODEL_BYTE * model_bytes
        self._bytes = self.limit
        bounded = max_bytes is None and not model_bytes
        self._symbols = _FREE_SYMBOLS + _SYMBOLS_PER_BYTE * size if bounded else None

    def take(self, count: int, passing: int = 0) -> None:
        """Take bytes that stay allocated, and check that `passing` more are available meanwhile.

        Raises
        ------
        CorruptFileError
            If they are not available.
        """
        self._bytes -= count
        if self._bytes < passing:
            raise CorruptFileError(
                f"its {self._size:,} bytes would take more than {self.limit:,} in memory: {_TRUST}"
            )

    def give_back(self, count: int) -> None:
        """Return freed bytes."""
        self._bytes += count

    def work(self, symbols: int) -> None:
        """Take the work of decoding symbols.

        Raises
        ------
        CorruptFileError
            If it is too much for a file of this size.
        """
        if self._symbols is None:
            return
        self._symbols -= symbols
        if self._symbols < 0:
            raise CorruptFileError(
                f"its {self._size:,} bytes claim to contain far too many values: {_TRUST}"
            )


def _max_bytes_everywhere() -> int | None:
    value = os.environ.get(MAX_BYTES)
    if value is None or value.isdecimal():
        return None if value is None else int(value)
    raise InvalidArgumentError(f"{MAX_BYTES} must be a number of bytes, not {value!r}")
