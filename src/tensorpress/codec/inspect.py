"""Inspects a `.tpz` file: its layers, its tensors, and the bytes of each part."""

import os
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch

from tensorpress.codec.decode_tensors import DecodedTensor
from tensorpress.codec.quantizers import StepQuantizer, UniformQuantizer
from tensorpress.codec.static_tables import entropy_bits
from tensorpress.codec.storage import Constant, Storage
from tensorpress.codec.tpz_file import OpenFile, open_file
from tensorpress.schemes.options import Options
from tensorpress.schemes.registry import scheme
from tensorpress.utils.module_tree import weight_name


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file.

    Attributes
    ----------
    name : str
        Name in the model's ``state_dict``.
    short_name : str
        The name, with "core" and "matrix k" for the factors of a weight, or "core k" for a tensor
        train.
    shape : tuple of int
        Shape of the tensor.
    dtype : str
        Type of its values, such as "float32".
    storage : str
        How it is stored, such as "step 0.0312".
    bytes : float
        Its share of the file, including its part of tables.
    entropy : float or None
        Empirical entropy of its quantized values in bits per value; None if it is not quantized.
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
        """The number of values."""
        return prod(self.shape)

    @property
    def bits_per_value(self) -> float:
        """The bits of the file per value."""
        return 8 * self.bytes / max(self.count, 1)


@dataclass(frozen=True)
class StoredLayer:
    """A pressed layer of a file."""

    name: str
    scheme: str
    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    options: Options


@dataclass(frozen=True, repr=False)
class Inspection:
    """The content of a `.tpz` file, from `inspect`.

    Attributes
    ----------
    file : str
        Name of the file.
    size : int
        Bytes of the file.
    network : str or None
        Name of the network in the zoo.
    coder : str
        Coder of the quantized values, "range" or "huffman".
    data : str or None
        Name of the data that the model was trained for.
    preprocess : str or None
        How the model takes images: size, mean and standard deviation.
    layers : tuple of StoredLayer
        The pressed layers.
    tensors : tuple of StoredTensor
        All tensors.
    parts : dict of str to int
        Bytes of each part; they sum to `size`. "container" has the checksum, "header" network and
        plan, "tables" quantizers and probability tables.
    """

    file: str
    size: int
    network: str | None
    coder: str
    data: str | None
    preprocess: str | None
    layers: tuple[StoredLayer, ...]
    tensors: tuple[StoredTensor, ...]
    parts: dict[str, int]

    def __str__(self) -> str:
        """Return a line of text for the file, and one for each tensor."""
        lines = [f"{self.file}: {self.network or 'a custom model'}, {self.size:,} bytes"]
        width = max((len(tensor.short_name) for tensor in self.tensors), default=0)
        lines += [
            f"{x.short_name:<{width}}  {x.bytes:>12,.1f} bytes, "
            f"{x.bits_per_value:.2f} bits per value"
            for x in self.tensors
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Return file, size and numbers of layers and tensors."""
        return (
            f"<Inspection of {self.file}: {self.size:,} bytes, {len(self.layers)} pressed layers, "
            f"{len(self.tensors)} tensors>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as plain data for JSON."""
        return {
            "file": self.file,
            "bytes": self.size,
            "network": self.network,
            "coder": self.coder,
            "data": self.data,
            "preprocess": self.preprocess,
            "layers": [asdict(layer) for layer in self.layers],
            "tensors": [asdict(t) | {"bits_per_value": t.bits_per_value} for t in self.tensors],
            "parts": self.parts,
        }


def inspect(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> Inspection:
    """Return the layers, tensors and sizes of a `.tpz` file; no model is needed.

    Parameters
    ----------
    path : path-like
        The file, which is untrusted.
    max_bytes : int, optional
        The memory that reading it may take, as for `tensorpress.load`.

    Raises
    ------
    CorruptFileError, DataNotFoundError, ModelMismatchError
        As `tensorpress.load` does.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from tensorpress.codec.save_load import save
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = save(torch.nn.Linear(40, 30), pathlib.Path(folder) / "a.tpz")
    ...     inspection = inspect(pathlib.Path(folder) / "a.tpz")
    >>> [tensor.name for tensor in inspection.tensors], size == sum(inspection.parts.values())
    (['weight', 'bias'], True)
    """
    opened = open_file(path, max_bytes=max_bytes)
    description = opened.description
    layers = tuple(
        StoredLayer(x.name, x.scheme, x.shape, x.ranks, dict(x.options)) for x in description.layers
    )
    decoded = opened.tensors(keep_symbols=True)
    tensors = [
        StoredTensor(
            *(entry.name, _short_name(entry.name, layers), entry.shape, entry.dtype),
            storage=_format_storage(tensor.storage),
            bytes=(tensor.table_bits + tensor.value_bits) / 8,
            entropy=_entropy(tensor),
        )
        for entry, tensor in zip(description.tensors, decoded, strict=True)
    ]
    return Inspection(
        opened.name,
        opened.size,
        description.network,
        opened.coder,
        opened.data,
        opened.preprocess,
        layers,
        tuple(tensors),
        _parts(opened, decoded),
    )


def _parts(opened: OpenFile, decoded: list[DecodedTensor]) -> dict[str, int]:
    """Return the bytes of each part; fractions are counted as values."""
    parts = {
        "container": opened.container_bytes,
        "header": round(opened.header_bits / 8),
        "tables": round(sum(tensor.table_bits for tensor in decoded) / 8),
    }
    return parts | {"values": opened.size - sum(parts.values())}


def _short_name(name: str, layers: tuple[StoredLayer, ...]) -> str:
    module, separator, factor = name.partition("parametrizations.")
    key, _, factor = factor.partition(".original")
    if not (separator and len(factor) < 4 and factor.isascii() and factor.isdigit()):
        return name
    layer = weight_name(module.removesuffix("."), key)
    schemes = (scheme(pressed.scheme) for pressed in layers if pressed.name == layer)
    return next((f"{layer}.{method.factor_name(int(factor))}" for method in schemes), name)


def _format_storage(storage: Storage) -> str:
    if isinstance(storage, UniformQuantizer):
        return f"{storage.levels + 1} levels ±{storage.bound:.3g}"
    if isinstance(storage, StepQuantizer):
        return f"step {storage.step:.3g}"
    if isinstance(storage, Constant):
        return f"constant {storage.value:.3g}"
    return {"raw": "exact", "coded": "exact, coded", "half": "float16"}.get(storage, storage)


def _entropy(tensor: DecodedTensor) -> float | None:
    if tensor.symbols is None or not tensor.symbols.size:
        return None
    return entropy_bits(torch.from_numpy(tensor.symbols))
