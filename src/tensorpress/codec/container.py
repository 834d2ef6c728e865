"""The container of a `.tpz` file: a stream and a payload with a checksum, written atomically.

Layout: ``TPZ``, the format version (1 byte), a CRC-32 (4 bytes, little endian) of the version and
of all that follows, the stream, the payload. If there is a payload, 128 is added to the version,
and the length of the stream (varint) precedes the stream.
"""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tensorpress.codec.bit_io import BitReader, BitWriter
from tensorpress.errors import CorruptFileError
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.paths import read_file

MAGIC = b"TPZ"
VERSION = 2

_PREFIX = len(MAGIC) + 1 + 4  # bytes before the stream
_PAYLOAD_FLAG = 128  # in the byte of the version


@dataclass(frozen=True)
class Container:
    """The content of a file.

    Attributes
    ----------
    stream, payload : bytes
        The two parts.
    size : int
        The size of the whole file in bytes.
    """

    stream: bytes
    payload: bytes
    size: int


def write(path: str | os.PathLike[str], stream: bytes, payload: bytes) -> int:
    """Write a file; an existing one is replaced only when the new one is complete on disk.

    Parameters
    ----------
    path : path-like
        The file to write or replace. Its folder must exist.
    stream, payload : bytes
        The two parts, of any length; an empty payload takes no bytes.

    Returns
    -------
    int
        The size of the file in bytes.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be created.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = write(f"{folder}/a.tpz", b"numbers", b"")
    ...     container = read(f"{folder}/a.tpz")
    >>> container.stream, size
    (b'numbers', 15)
    """
    length = BitWriter()
    if payload:
        length.varint(len(stream))
    body = b"".join([length.to_bytes() if payload else b"", stream, payload])
    version = bytes([VERSION | _PAYLOAD_FLAG if payload else VERSION])
    data = b"".join([MAGIC, version, _checksum(version + body), body])
    write_atomically(path, data)
    return len(data)


def read(path: str | os.PathLike[str]) -> Container:
    """Read a file that `write` wrote, and check all of it.

    Raises
    ------
    DataNotFoundError
        If the file does not exist or cannot be read.
    CorruptFileError
        If the file is not a `.tpz` file, has another version, or was truncated or altered.
    """
    data = read_file(path, ".tpz file")
    with name_file_in_errors(path):
        return _parse(data)


@contextmanager
def name_file_in_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add a file's name to the message of every `CorruptFileError` in a ``with`` block."""
    try:
        yield
    except CorruptFileError as error:
        raise CorruptFileError(f"{os.fspath(path)}: {error}") from error


def _parse(data: bytes) -> Container:
    """Return the parts of a file's bytes."""
    if not data.startswith(MAGIC):
        raise CorruptFileError("this is not a .tpz file")
    if len(data) < _PREFIX:
        raise CorruptFileError("the file is truncated")
    version = data[len(MAGIC)] & ~_PAYLOAD_FLAG
    if version != VERSION:
        raise CorruptFileError(
            f"the file has format version {version}, but this TensorPress reads {VERSION}"
        )
    body = data[_PREFIX:]
    if _checksum(data[len(MAGIC) : len(MAGIC) + 1] + body) != data[_PREFIX - 4 : _PREFIX]:
        raise CorruptFileError("the checksum is wrong: the file is truncated or altered")
    if not data[len(MAGIC)] & _PAYLOAD_FLAG:
        return Container(body, b"", len(data))
    reader = BitReader(body)
    stream = reader.take(reader.varint())
    return Container(stream, body[reader.bytes_read :], len(data))


def _checksum(data: bytes) -> bytes:
    """Return the CRC-32 of bytes, little endian."""
    return zlib.crc32(data).to_bytes(4, "little")
