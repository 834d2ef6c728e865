"""What is in a `.tpz` file, tensor by tensor and by part."""

import os
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from tensorpress.codec import container
from tensorpress.codec.bits import BitReader
from tensorpress.codec.contents import DTYPES, stored_tensors
from tensorpress.codec.description import (
    Description,
    PackedLayer,
    PackedScheme,
    TensorEntry,
    describe,
    table_of,
)
from tensorpress.codec.file import load
from tensorpress.codec.header import read_description
from tensorpress.codec.quantize import UniformQuantizer
from tensorpress.codec.specs import CODERS, Storage, read_specs
from tensorpress.codec.tensors import decode_tensors, encode_tensors, entropy_bits
from tensorpress.errors import CorruptFileError
from tensorpress.planning.layer_plans import LayerPlan

_BELIEVED, _BELIEVED_PER_BYTE = 1 << 22, 1 << 12
_PLAIN: dict[str, Literal["half"] | None] = {"raw": None, "half": "half", "integers": None}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    ``short_name`` has "core" and "matrix k" for the factors of a weight, "core k" for a train;
    ``bytes`` is its share of the file, its table included; ``entropy`` is the empirical
    entropy of its quantized values in bits a value, None where it is not quantized.
    """

    name: str
    short_name: str
    shape: tuple[int, ...]
    dtype: str
    storage: str
    bytes: float
    entropy: float | None

    @property
    def count(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def bits_per_value(self) -> float:
        """Bits of the file a value."""
        return 8 * self.bytes / max(self.count, 1)


@dataclass(frozen=True)
class StoredLayer:
    """How a layer of a file is pressed; modes and core are empty for schemes without."""

    name: str
    scheme: str
    shape: tuple[int, ...]
    modes: tuple[int, ...]
    ranks: tuple[int, ...]
    core: str


@dataclass(frozen=True)
class Inspection:
    """Content of a `.tpz` file, from `inspect`.

    ``parts`` adds up to ``size``: "container" with the checksum, "header" with network and plan,
    "tables" with quantizers and priors, "values".
    """

    file: str
    size: int
    network: str | None
    coder: str
    layers: tuple[StoredLayer, ...]
    tensors: tuple[StoredTensor, ...]
    parts: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data for JSON."""
        return {
            "file": self.file,
            "bytes": self.size,
            "network": self.network,
            "coder": self.coder,
            "layers": [asdict(layer) for layer in self.layers],
            "tensors": [asdict(t) | {"bits_per_value": t.bits_per_value} for t in self.tensors],
            "parts": self.parts,
        }


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Read what is in a file, by tensor and by part; no model is needed.

    Parameters
    ----------
    path : path-like
        A `.tpz` file.

    Raises
    ------
    CorruptFileError, DataNotFoundError, ModelMismatchError
        As `load` does.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from tensorpress.codec.file import save
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = save(torch.nn.Linear(40, 30), pathlib.Path(folder) / "a.tpz")
    ...     found = inspect(pathlib.Path(folder) / "a.tpz")
    >>> [tensor.name for tensor in found.tensors], size == sum(found.parts.values())
    (['weight', 'bias'], True)
    """
    file = os.fspath(path)
    content = container.read(path)
    description = read_description(file, content.header)
    if len(content.sections) != 2:
        raise CorruptFileError(f"{file}: {len(content.sections)} sections where 2 were expected")
    spec, payload = content.sections
    table, layers = _table_and_layers(path, description, len(payload))
    shapes = [entry.shape for entry in table]
    dtypes = [DTYPES[entry.dtype] for entry in table]
    with container.naming(path):
        storages = [entry.storage for entry in read_specs(spec, shapes, dtypes)]
        # Levels may coincide, or overflow, in the tensor's own type.
        precise = [
            torch.float64 if isinstance(storage, UniformQuantizer) else dtype
            for storage, dtype in zip(storages, dtypes, strict=True)
        ]
        values = decode_tensors(spec, payload, shapes, precise)
    coder = CODERS[BitReader(spec).bits(1)]
    given = [s if isinstance(s, UniformQuantizer) else _PLAIN[s] for s in storages]
    bits = encode_tensors(values, given, coder).bits
    tensors = [
        StoredTensor(
            entry.name,
            _short_name(entry.name, layers),
            entry.shape,
            entry.dtype,
            _told(storage),
            share / 8,
            _entropy(value, storage),
        )
        for entry, storage, value, share in zip(table, storages, values, bits, strict=True)
    ]
    parts = {
        "container": content.size - content.header_bytes - len(spec) - len(payload),
        "header": content.header_bytes,
        "tables": len(spec),
        "values": len(payload),
    }
    return Inspection(file, content.size, description.network, coder, layers, tuple(tensors), parts)


def _table_and_layers(
    path: str | os.PathLike[str], description: Description, payload: int
) -> tuple[tuple[TensorEntry, ...], tuple[StoredLayer, ...]]:
    """Return the tensors of a file and its pressed layers, rebuilding a network of the zoo."""
    if isinstance(description.tensors, int):
        model = load(path)
        tensors = stored_tensors(model)
        layers = describe(model, None, tensors).layers
        return table_of(tensors), tuple(map(_stored, layers))
    values = sum(prod(entry.shape) for entry in description.tensors)
    if values > _BELIEVED + _BELIEVED_PER_BYTE * payload:
        raise CorruptFileError(
            f"{os.fspath(path)}: {payload} bytes are said to hold {values:,} values"
        )
    return description.tensors, tuple(map(_stored, description.layers))


def _stored(layer: PackedLayer) -> StoredLayer:
    """Return a layer that is described by name and shape."""
    name, shape = str(layer.ref), layer.shape or ()
    if isinstance(layer, PackedScheme):
        return StoredLayer(name, layer.scheme, shape, (), layer.ranks, "")
    tucker = LayerPlan(name, shape, layer.modes, layer.ranks, layer.core)
    return StoredLayer(name, tucker.scheme, shape, layer.modes, layer.ranks, layer.core)


def _short_name(name: str, layers: tuple[StoredLayer, ...]) -> str:
    layer, found, factor = name.partition(".parametrizations.weight.original")
    if not found:
        return name
    if any(pressed.name == layer and pressed.core for pressed in layers):
        return f"{layer}.core" if factor == "0" else f"{layer}.matrix{factor}"
    return f"{layer}.core{factor}"


def _told(storage: Storage) -> str:
    if isinstance(storage, UniformQuantizer):
        return f"{storage.levels + 1} levels ±{storage.bound:.3g}"
    return {"raw": "exact", "half": "float16", "integers": "integers"}[storage]


def _entropy(values: Tensor, storage: Storage) -> float | None:
    if not isinstance(storage, UniformQuantizer) or not values.numel():
        return None
    return entropy_bits(storage.indices(values))
