"""How each tensor of a list is stored: the tables that come before the values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from tensorpress.codec.bits import BitReader, BitWriter
from tensorpress.codec.huffman import HuffmanCode
from tensorpress.codec.plain import PLAIN_STORAGES, PlainStorage
from tensorpress.codec.priors import Prior, read_prior
from tensorpress.codec.quantize import UniformQuantizer
from tensorpress.errors import CorruptFileError, InvalidArgumentError

Coder = Literal["range", "huffman"]
CODERS: tuple[Coder, ...] = ("range", "huffman")

MAX_COUNTS = 1 << 24
"""Most counts in all probability tables of a file, so that reading them takes bounded memory."""

Storage = UniformQuantizer | PlainStorage


@dataclass(frozen=True)
class TensorSpec:
    """How one tensor is stored.

    Attributes
    ----------
    storage : UniformQuantizer or {"raw", "half", "integers"}
        Quantized and entropy coded; bit for bit; as float16; or as integers of variable length.
        How values were rounded is not recorded, the quantizer always says "nearest".
    model : Prior, HuffmanCode or None
        Of a quantized tensor, the table of the range coder, or the Huffman code that all tensors
        with the same quantizer share; None if the tensor has no values.
    """

    storage: Storage
    model: Prior | HuffmanCode | None = None


def reach(quantizer: UniformQuantizer) -> int:
    """Return the largest symbol, Q/2; see `tensorpress.codec.priors`."""
    return quantizer.levels // 2


def write_head(writer: BitWriter, coder: Coder, storages: Sequence[Storage]) -> None:
    """Write the coder, the different storages, and which of them each tensor has."""
    writer.bits(CODERS.index(coder), 1)
    distinct = list(dict.fromkeys(storages))
    writer.varint(len(distinct))
    for storage in distinct:
        if isinstance(storage, UniformQuantizer):
            writer.varint(len(PLAIN_STORAGES) - 1 + reach(storage))
            writer.float32(storage.bound)
        else:
            writer.varint(PLAIN_STORAGES.index(storage))
    for storage in storages:
        writer.bits(distinct.index(storage), _width(len(distinct)))


def read_specs(
    spec: bytes, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[torch.dtype]
) -> list[TensorSpec]:
    """Read how tensors are stored, without their values.

    Parameters
    ----------
    spec : bytes
        From a file, and not trusted.
    shapes, dtypes : sequence
        Of the tensors that were encoded.

    Raises
    ------
    CorruptFileError
        If the bytes do not describe tensors of these shapes and types.

    Examples
    --------
    >>> from tensorpress.codec.tensors import encode_tensors
    >>> encoded = encode_tensors([torch.zeros(3)], ["half"])
    >>> read_specs(encoded.spec, [(3,)], [torch.float32])
    [TensorSpec(storage='half', model=None)]
    """
    reader = BitReader(spec)
    coder = CODERS[reader.bits(1)]
    storages = _read_storages(reader, dtypes)
    priors: list[Prior] = []
    codes: dict[Storage, HuffmanCode] = {}
    specs, counts = [], 0
    for storage, shape in zip(storages, shapes, strict=True):
        model: Prior | HuffmanCode | None = None
        if isinstance(storage, UniformQuantizer) and 0 not in shape:
            if coder == "range":
                model = read_prior(reader, reach(storage), priors)
                counts += len(model.counts)
            elif storage in codes:
                model = codes[storage]
            else:
                model = codes[storage] = HuffmanCode.read(reader, reach(storage))
        if counts > MAX_COUNTS:
            raise CorruptFileError(f"the probability tables have more than {MAX_COUNTS:,} counts")
        specs.append(TensorSpec(storage, model))
    reader.finish()
    return specs


def _read_storages(reader: BitReader, dtypes: Sequence[torch.dtype]) -> list[Storage]:
    count = reader.varint()
    if count > len(dtypes):
        raise CorruptFileError(f"{len(dtypes)} tensors cannot be stored in {count} different ways")
    distinct = [_read_storage(reader) for _ in range(count)]
    storages = []
    for dtype in dtypes:
        index = reader.bits(_width(count))
        if index >= count:
            raise CorruptFileError("a tensor is stored in a way that does not exist")
        if isinstance(distinct[index], UniformQuantizer) and not dtype.is_floating_point:
            raise CorruptFileError(f"a tensor of {dtype} cannot have been quantized")
        storages.append(distinct[index])
    return storages


def _read_storage(reader: BitReader) -> Storage:
    code = reader.varint()
    if code < len(PLAIN_STORAGES):
        return PLAIN_STORAGES[code]
    try:
        return UniformQuantizer(2 * (code - len(PLAIN_STORAGES) + 1), reader.float32())
    except InvalidArgumentError as error:
        raise CorruptFileError(f"a quantizer is damaged: {error}") from error


def _width(count: int) -> int:
    """Return the bits that tell `count` cases apart."""
    return max(count - 1, 0).bit_length()
