"""The container of a `.tpz` file: a header and byte strings, checked and written atomically.

Layout: ``TPZ``, the format version (1 byte), the CRC-32 of all that follows (4 bytes, little
endian); twice the length of the stored header, plus 1 if it is compressed (varint), the header
(msgpack, deflated where that is shorter); the number of sections and the length of each (varints);
the sections. Nothing follows.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from tensorpress.codec.bits import BitReader, BitWriter
from tensorpress.errors import CorruptFileError, DataNotFoundError, InvalidArgumentError
from tensorpress.files import write_atomically

MAGIC = b"TPZ"
VERSION = 1
MAX_HEADER_BYTES = 2 << 20
"""Largest header, uncompressed: some twenty thousand tensors, and no memory to speak of."""

_PREFIX = len(MAGIC) + 1 + 4
_RAW_DEFLATE = -zlib.MAX_WBITS  # without zlib's own header and checksum


@dataclass(frozen=True)
class Container:
    """What a file holds.

    Attributes
    ----------
    header : object
        Dictionaries with string keys, lists, strings, bytes, numbers, booleans and None.
    sections : tuple of bytes
        The byte strings, in the order they were written.
    header_bytes : int
        Bytes of the header as stored.
    size : int
        Bytes of the whole file.
    """

    header: Any
    sections: tuple[bytes, ...]
    header_bytes: int
    size: int


def write(path: str | os.PathLike[str], header: Any, sections: Sequence[bytes]) -> int:
    """Write a file; a file of that name is replaced only when the new one is complete on disk.

    Parameters
    ----------
    path : path-like
        The file. Its folder must exist.
    header : object
        Dictionaries with string keys, lists or tuples (read back as lists), strings, bytes,
        numbers, booleans and None.
    sections : sequence of bytes
        Any number of byte strings.

    Returns
    -------
    int
        Bytes of the file.

    Raises
    ------
    InvalidArgumentError
        If the header holds anything else, or the file cannot be created.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = write(f"{folder}/a.tpz", {"name": "lenet5"}, [b"spec", b"payload"])
    ...     container = read(f"{folder}/a.tpz")
    >>> container.header, container.sections, container.size == size
    ({'name': 'lenet5'}, (b'spec', b'payload'), True)
    """
    body = _pack(header, sections)
    checksum = zlib.crc32(body).to_bytes(4, "little")
    data = b"".join([MAGIC, bytes([VERSION]), checksum, body])
    write_atomically(path, data)
    return len(data)


def read(path: str | os.PathLike[str]) -> Container:
    """Read a file that `write` wrote, after checking all of it.

    Parameters
    ----------
    path : path-like
        The file.

    Raises
    ------
    DataNotFoundError
        If there is no such file, or it cannot be read.
    CorruptFileError
        If it is not a `.tpz` file, of a newer version, truncated or altered.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{path}: no such file") from error
    except OSError as error:
        raise DataNotFoundError(f"{path} cannot be read: {error.strerror}") from error
    with naming(path):
        return _parse(data)


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put a file's name before the message of every `CorruptFileError` in the block."""
    try:
        yield
    except CorruptFileError as error:
        raise CorruptFileError(f"{os.fspath(path)}: {error}") from error


def _pack(header: Any, sections: Sequence[bytes]) -> bytes:
    try:
        packed: bytes = msgpack.packb(header)
        _unpack_header(packed)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgumentError(f"the header cannot be stored: {error}") from error
    deflate = zlib.compressobj(9, zlib.DEFLATED, _RAW_DEFLATE)
    compressed = deflate.compress(packed) + deflate.flush()
    shorter = len(compressed) < len(packed)
    stored = compressed if shorter else packed
    before, after = BitWriter(), BitWriter()
    before.varint(2 * len(stored) + shorter)
    for n in (len(sections), *map(len, sections)):
        after.varint(n)
    return b"".join([before.to_bytes(), stored, after.to_bytes(), *sections])


def _parse(data: bytes) -> Container:
    if not data.startswith(MAGIC):
        raise CorruptFileError("this is not a .tpz file")
    if len(data) < _PREFIX:
        raise CorruptFileError("the file is truncated")
    version = data[len(MAGIC)]
    if version > VERSION:
        raise CorruptFileError(
            f"the file has format version {version}, this TensorPress reads up to {VERSION}"
        )
    if version != VERSION:
        raise CorruptFileError(f"{version} is not a format version")
    body = data[_PREFIX:]
    if zlib.crc32(body) != int.from_bytes(data[_PREFIX - 4 : _PREFIX], "little"):
        raise CorruptFileError("the checksum is wrong: the file is truncated or altered")
    reader = BitReader(body)
    length, compressed = divmod(reader.varint(), 2)
    stored = reader.take(length)
    header = _unpack_header(_decompress(stored) if compressed else stored)
    count = reader.varint()
    if count > len(body):
        raise CorruptFileError("the data end early")
    lengths = [reader.varint() for _ in range(count)]
    sections = tuple(reader.take(n) for n in lengths)
    reader.finish()
    return Container(header, sections, length, len(data))


def _decompress(stored: bytes) -> bytes:
    stream = zlib.decompressobj(_RAW_DEFLATE)
    try:
        packed = stream.decompress(stored, MAX_HEADER_BYTES)
    except zlib.error as error:
        raise CorruptFileError("the header is damaged") from error
    if not stream.eof or stream.unused_data:
        raise CorruptFileError(f"the header is damaged or exceeds {MAX_HEADER_BYTES} bytes")
    return packed


def _unpack_header(packed: bytes) -> Any:
    if len(packed) > MAX_HEADER_BYTES:
        raise CorruptFileError(f"the header exceeds {MAX_HEADER_BYTES} bytes")
    try:
        return msgpack.unpackb(packed, raw=False, ext_hook=_no_extension, timestamp=1)
    except (ValueError, TypeError) as error:
        raise CorruptFileError(f"the header is damaged: {error}") from error


def _no_extension(code: int, _data: bytes) -> Any:
    raise CorruptFileError(f"the header holds an extension type, {code}")
