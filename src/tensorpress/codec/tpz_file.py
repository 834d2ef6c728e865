"""Writing a description and tensors to a `.tpz` file, and opening one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import Tensor

from tensorpress.codec import container, named_header, zoo_header
from tensorpress.codec.adaptive_coder import Stream
from tensorpress.codec.decode_tensors import StoredTensor, decode_tensors
from tensorpress.codec.encode_tensors import encode_tensors
from tensorpress.codec.header import Description
from tensorpress.codec.model_tensors import DTYPES
from tensorpress.codec.storage import CODERS, Coder, Quantizer
from tensorpress.errors import CorruptFileError, unknown_name

_BELIEVED, _BELIEVED_PER_BYTE = 1 << 22, 1 << 12


def write_file(
    path: str | os.PathLike[str],
    description: Description,
    tensors: Sequence[Tensor],
    quantizers: Sequence[Quantizer | Literal["half"] | None],
    coder: Coder,
) -> int:
    """Write a file and return its size in bytes; see `encode_tensors`."""
    if coder not in CODERS:
        raise unknown_name("coder", coder, CODERS)
    stream, header = Stream(), b""
    zoo_header.write_network(stream, description)
    if description.network is None:
        header = named_header.pack(description)
        stream.number("header", len(header))
    else:
        zoo_header.write_layers(stream, description)
    stream.number("coder", CODERS.index(coder))
    payload = encode_tensors(stream, tensors, quantizers, coder)
    return container.write(path, stream.finish(), header + payload)


@dataclass(frozen=True)
class OpenFile:
    """A file whose header has been read.

    Attributes
    ----------
    name : str
        Of the file.
    size, header_bits : int, float
        Bytes of the file, and bits of its header.
    description : Description
        What it says of its model.
    coder : {"range", "huffman"}
        Of the quantized values.
    container_bytes : int
        Bytes of magic, version, checksum and lengths.
    """

    name: str
    size: int
    header_bits: float
    description: Description
    coder: Coder
    container_bytes: int
    _stream: Stream
    _payload: bytes

    def tensors(self) -> list[StoredTensor]:
        """Return the tensors of the description, once.

        Raises
        ------
        CorruptFileError
            If the file does not hold them, or far too few bytes for so many.
        """
        table = self.description.tensors
        values = sum(prod(entry.shape) for entry in table)
        if self.description.network is None and values > _BELIEVED + _BELIEVED_PER_BYTE * self.size:
            raise CorruptFileError(
                f"{self.name}: {self.size} bytes are said to hold {values:,} values"
            )
        shapes, dtypes = [entry.shape for entry in table], [DTYPES[entry.dtype] for entry in table]
        with container.naming(self.name):
            return decode_tensors(self._stream, self._payload, shapes, dtypes, self.coder)


def open_file(path: str | os.PathLike[str]) -> OpenFile:
    """Read the header of a file.

    Raises
    ------
    CorruptFileError, DataNotFoundError, ModelMismatchError
        As `tensorpress.load` does.
    """
    content, name = container.read(path), os.fspath(path)
    stream, payload = Stream(content.stream), content.payload
    with container.naming(path):
        network = zoo_header.read_network(name, stream)
        size = stream.number("header") if network is None else 0
        if size > len(payload):
            raise CorruptFileError("the header ends early")
    if network is None:
        description = named_header.unpack(name, payload[:size])
    else:
        description = zoo_header.read_layers(name, stream, network)
    with container.naming(path):
        coder = stream.number("coder")
        if coder >= len(CODERS):
            raise CorruptFileError(f"{coder} is no entropy coder")
    bits = stream.bits + 8 * size
    around = content.size - len(content.stream) - len(payload)
    return OpenFile(
        name, content.size, bits, description, CODERS[coder], around, stream, payload[size:]
    )
