"""A whole `.tpz` file: its header, coder and tensors."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tensorpress.codec import container, named_header, zoo_header
from tensorpress.codec.adaptive_coder import Stream
from tensorpress.codec.data_name import (
    read_data_name,
    read_text,
    write_data_name,
    write_text,
)
from tensorpress.codec.decode_tensors import DecodedTensor, decode_tensors
from tensorpress.codec.encode_tensors import encode_tensors
from tensorpress.codec.header import Description
from tensorpress.codec.model_tensors import DTYPES
from tensorpress.codec.read_budget import ReadBudget
from tensorpress.codec.storage import CODERS, Coder, Request
from tensorpress.errors import CorruptFileError, unknown_name

_PREPROCESS = "the preprocessing of images"


def write_file(
    path: str | os.PathLike[str],
    description: Description,
    tensors: Sequence[Tensor],
    quantizers: Sequence[Request],
    coder: Coder,
    data: str | None = None,
    preprocess: str | None = None,
) -> int:
    """Write a `.tpz` file.

    Parameters
    ----------
    path : path-like
        The file to write or replace.
    description : Description
        The header: network, plan and table of tensors.
    tensors : sequence of Tensor
        The tensors of the description's table, in order.
    quantizers : sequence of UniformQuantizer, StepQuantizer, "half", "coded" or None
        How each tensor is stored; see `tensorpress.codec.encode_tensors.encode_tensors`.
    coder : {"range", "huffman"}
        The coder of the quantized values.
    data : str, optional
        The name of the data that the model was trained for.
    preprocess : str, optional
        How the model takes images.

    Returns
    -------
    int
        The size of the file in bytes.
    """
    if coder not in CODERS:
        raise unknown_name("coder", coder, CODERS)
    stream, header = Stream(), b""
    zoo_header.write_network(stream, description)
    if description.network is None:
        header = named_header.pack(description)
        stream.number("header", len(header))
    else:
        zoo_header.write_layers(stream, description)
    # The quotient by the number of coders tells which texts follow.
    texts = (data is not None) + 2 * (preprocess is not None)
    stream.number("coder", CODERS.index(coder) + len(CODERS) * texts)
    if data is not None:
        write_data_name(stream, data)
    if preprocess is not None:
        write_text(stream, _PREPROCESS, preprocess)
    payload = encode_tensors(stream, tensors, quantizers, coder)
    return container.write(path, stream.finish(), header + payload)


@dataclass(frozen=True)
class OpenFile:
    """A file with its header read.

    Attributes
    ----------
    name : str
        Name of the file.
    size : int
        Bytes of the file.
    header_bits : float
        Bits of the header.
    description : Description
        The header: network, plan and table of tensors.
    coder : {"range", "huffman"}
        The coder of the quantized values.
    data : str or None
        The name of the data that the model was trained for.
    preprocess : str or None
        How the model takes images, in the form of the option ``--preprocess``.
    container_bytes : int
        Bytes of magic, version, checksum and lengths.
    budget : ReadBudget
        The memory and work that reading may still take.
    """

    name: str
    size: int
    header_bits: float
    description: Description
    coder: Coder
    data: str | None
    preprocess: str | None
    container_bytes: int
    budget: ReadBudget
    _stream: Stream
    _payload: bytes

    def tensors(self, *, keep_symbols: bool = False) -> list[DecodedTensor]:
        """Decode the tensors of the description; this is possible only once.

        Raises
        ------
        CorruptFileError
            If the file does not contain them, claims far too many for its size, or has values that
            are not finite and not coded losslessly.
        """
        table = self.description.tensors
        shapes, dtypes = [entry.shape for entry in table], [DTYPES[entry.dtype] for entry in table]
        with container.name_file_in_errors(self.name):
            decoded = decode_tensors(
                *(self._stream, self._payload, shapes, dtypes, self.coder),
                budget=self.budget,
                keep_symbols=keep_symbols,
            )
            for entry, tensor in zip(table, decoded, strict=True):
                if not (tensor.finite or tensor.storage == "coded"):
                    raise CorruptFileError(f"tensor {entry.name!r} has NaN or infinite values")
        return decoded


def open_file(
    path: str | os.PathLike[str], *, max_bytes: int | None = None, model_bytes: int = 0
) -> OpenFile:
    """Read the header of a file.

    Parameters
    ----------
    path : path-like
        The file, which is untrusted.
    max_bytes, model_bytes : int
        See `tensorpress.codec.read_budget.ReadBudget`.

    Raises
    ------
    CorruptFileError, DataNotFoundError, ModelMismatchError
        As `tensorpress.load` does.
    """
    content, name = container.read(path), os.fspath(path)
    budget = ReadBudget(content.size, max_bytes, model_bytes)
    stream, payload = Stream(content.stream), content.payload
    with container.name_file_in_errors(path):
        network = zoo_header.read_network(name, stream)
        size = stream.number("header") if network is None else 0
        if size > len(payload):
            raise CorruptFileError("the header ends early")
    if network is None:
        description = named_header.unpack(name, payload[:size], budget)
    else:
        description = zoo_header.read_layers(name, stream, network)
    with container.name_file_in_errors(path):
        number = stream.number("coder")
        texts, coder = divmod(number, len(CODERS))
        if texts > 3:
            raise CorruptFileError(f"{number} is not an entropy coder")
        data = read_data_name(stream) if texts & 1 else None
        preprocess = read_text(stream, _PREPROCESS) if texts & 2 else None
    bits = stream.bits + 8 * size
    container_bytes = content.size - len(content.stream) - len(payload)
    return OpenFile(
        name=name,
        size=content.size,
        header_bits=bits,
        description=description,
        coder=CODERS[coder],
        data=data,
        preprocess=preprocess,
        container_bytes=container_bytes,
        budget=budget,
        _stream=stream,
        _payload=payload[size:],
    )
