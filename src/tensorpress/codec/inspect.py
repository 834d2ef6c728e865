"""What is in a `.tpz` file, tensor by tensor and by part."""

import os
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch

from tensorpress.codec.decode_tensors import StoredTensor as Decoded
from tensorpress.codec.quantizers import StepQuantizer, UniformQuantizer
from tensorpress.codec.static_tables import entropy_bits
from tensorpress.codec.storage import Constant, Storage
from tensorpress.codec.tpz_file import OpenFile, open_file
from tensorpress.schemes.parametrization import Options
from tensorpress.schemes.registry import scheme


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
    """How a layer of a file is pressed."""

    name: str
    scheme: str
    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    options: Options


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
    >>> from tensorpress.codec.save_load import save
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = save(torch.nn.Linear(40, 30), pathlib.Path(folder) / "a.tpz")
    ...     found = inspect(pathlib.Path(folder) / "a.tpz")
    >>> [tensor.name for tensor in found.tensors], size == sum(found.parts.values())
    (['weight', 'bias'], True)
    """
    opened = open_file(path)
    description = opened.description
    layers = tuple(
        StoredLayer(x.name, x.scheme, x.shape, x.ranks, dict(x.options)) for x in description.layers
    )
    decoded = opened.tensors()
    tensors = [
        StoredTensor(
            *(entry.name, _short_name(entry.name, layers), entry.shape, entry.dtype),
            storage=_told(found.storage),
            bytes=(found.table_bits + found.value_bits) / 8,
            entropy=_entropy(found),
        )
        for entry, found in zip(description.tensors, decoded, strict=True)
    ]
    return Inspection(
        opened.name,
        opened.size,
        description.network,
        opened.coder,
        layers,
        tuple(tensors),
        _parts(opened, decoded),
    )


def _parts(opened: OpenFile, decoded: list[Decoded]) -> dict[str, int]:
    """Return the bytes of each part, fractions of bytes being with the values."""
    parts = {
        "container": opened.container_bytes,
        "header": round(opened.header_bits / 8),
        "tables": round(sum(tensor.table_bits for tensor in decoded) / 8),
    }
    return parts | {"values": opened.size - sum(parts.values())}


def _short_name(name: str, layers: tuple[StoredLayer, ...]) -> str:
    layer, found, factor = name.partition(".parametrizations.weight.original")
    if not found:
        return name
    own = (scheme(pressed.scheme) for pressed in layers if pressed.name == layer)
    return next((f"{layer}.{method.factor_name(int(factor))}" for method in own), name)


def _told(storage: Storage) -> str:
    if isinstance(storage, UniformQuantizer):
        return f"{storage.levels + 1} levels ±{storage.bound:.3g}"
    if isinstance(storage, StepQuantizer):
        return f"step {storage.step:.3g}"
    if isinstance(storage, Constant):
        return f"constant {storage.value:.3g}"
    return {"raw": "exact", "half": "float16", "integers": "integers"}[storage]


def _entropy(tensor: Decoded) -> float | None:
    if tensor.symbols is None or not tensor.symbols.size:
        return None
    return entropy_bits(torch.from_numpy(tensor.symbols))
