"""The tensors of a checkpoint in Hugging Face's layout, read one at a time."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tensorpress.errors import CorruptFileError, DataNotFoundError, InvalidArgumentError
from tensorpress.utils.config_parsing import parse_json
from tensorpress.utils.paths import is_file, is_folder, read_file

WEIGHTS = "model.safetensors"
"""The weight file of a model without shards."""

INDEX = "model.safetensors.index.json"
"""The file that says which shard has each tensor."""

DTYPES: Mapping[str, torch.dtype] = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8},
    "BOOL": torch.bool,
}
"""Dtypes by their names in safetensors."""


@dataclass(frozen=True)
class StoredTensor:
    """The file, the shape and the dtype of a tensor."""

    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size of the values, in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def empty(self) -> Tensor:
        """Return a tensor of this shape and dtype on the meta device."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


class TensorFiles:
    """The safetensors of a folder: one ``model.safetensors``, or shards and their index.

    Parameters
    ----------
    folder : path
        The folder; at first only the headers of its files are read.

    Attributes
    ----------
    tensors : dict of str to StoredTensor
        The tensors by name, in the order of the files.

    Raises
    ------
    DataNotFoundError
        If the folder, its weights or a shard is missing.
    CorruptFileError
        If a file is truncated or damaged, or the index does not match the shards.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not is_folder(self.folder):
            raise DataNotFoundError(f"{self.folder} is not a folder")
        index = self.folder / INDEX
        places = _read_index(index) if index.is_file() else {}
        files = sorted(set(places.values())) or [WEIGHTS]
        self.tensors: dict[str, StoredTensor] = {}
        for file in files:
            for name, stored in self._read_header(file).items():
                if name in self.tensors:
                    raise CorruptFileError(
                        f"{self.folder}: {name!r} is in {self.tensors[name].file} and in {file}"
                    )
                self.tensors[name] = stored
        for name, file in places.items():
            if name not in self.tensors or self.tensors[name].file != file:
                raise CorruptFileError(f"{index} lists {name!r} in {file}, which does not have it")

    @property
    def files(self) -> dict[str, list[str]]:
        """The names of the tensors in each file."""
        names: dict[str, list[str]] = {}
        for name, stored in self.tensors.items():
            names.setdefault(stored.file, []).append(name)
        return names

    @property
    def fingerprint(self) -> str:
        """Hash of the names, sizes and times of the files, as twelve hexadecimal digits."""
        stats = [(file, (self.folder / file).stat()) for file in self.files]
        content = [(file, stat.st_size, int(stat.st_mtime)) for file, stat in stats]
        return sha256(json.dumps(content).encode()).hexdigest()[:12]

    def read(self, name: str) -> Tensor:
        """Return the values of a tensor; no other part of its file stays in memory.

        Raises
        ------
        CorruptFileError
            If its file can no longer be read.
        """
        with _open_file(self.folder / self.tensors[name].file) as file:
            # A copy, because the whole file stays mapped until its last tensor is freed.
            values: Tensor = file.get_tensor(name).clone()
        return values

    def _read_header(self, file: str) -> dict[str, StoredTensor]:
        path, tensors = self.folder / file, {}
        with _open_file(path) as opened:
            for name in opened.keys():  # noqa: SIM118
                part = opened.get_slice(name)
                code, shape = part.get_dtype(), tuple(part.get_shape())
                if code not in DTYPES:
                    raise InvalidArgumentError(
                        f"{path}: tensor {name!r} has the unsupported type {code}"
                    )
                tensors[name] = StoredTensor(file, shape, DTYPES[code])
        return tensors


@contextmanager
def _open_file(path: Path) -> Iterator[Any]:
    """Open a safetensors file; errors name it."""
    if not is_file(path):
        raise DataNotFoundError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, OverflowError, MemoryError) as error:
        raise CorruptFileError(f"{path} is truncated or damaged: {error}") from None


def _read_index(path: Path) -> dict[str, str]:
    """Return the file of each tensor."""
    try:
        places = parse_json(read_file(path))["weight_map"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CorruptFileError(f"{path} is not an index of shards: {error!r}") from None
    if not isinstance(places, dict) or not places:
        raise CorruptFileError(f"{path}: its weight_map names no tensors")
    for file in places.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise CorruptFileError(f"{path} lists {file!r}, which is not a file name")
    return places
