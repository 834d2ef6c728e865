"""The tensors of an encoded folder, decoded one at a time."""

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from tensorpress.checkpoints.safetensors_reader import DTYPES, StoredTensor, TensorFiles
from tensorpress.checkpoints.safetensors_writer import CODES
from tensorpress.codec.container import name_file_in_errors
from tensorpress.codec.read_budget import ReadBudget
from tensorpress.codec.state_dict import load_tensors
from tensorpress.errors import CorruptFileError, DataNotFoundError
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.config_parsing import parse_json
from tensorpress.utils.paths import is_file, read_file

ENCODED = "encoded.json"
"""The file that lists the tensors of an encoded folder; it is written last."""

SHARD = ".safetensors"

TENSORS = "tensors"
"""The subfolder with a ``.tpz`` file for each tensor."""


class EncodedFiles(TensorFiles):
    """The tensors of a folder written by `encode_checkpoint`; each can be read alone.

    Parameters
    ----------
    folder : path
        The folder; at first only its ``encoded.json`` is read.

    Attributes
    ----------
    tensors : dict of str to StoredTensor
        The tensors by name, each in a separate file.
    shards : dict of str to str
        The file of the original checkpoint for each tensor.

    Raises
    ------
    DataNotFoundError
        If the folder or its ``encoded.json`` is missing.
    CorruptFileError
        If ``encoded.json`` is damaged, or says that files hold far more than their sizes allow,
        which are limited as those of single files are.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        path = self.folder / ENCODED
        if not is_file(path):
            raise DataNotFoundError(
                f"{folder} has no {ENCODED}: expected a folder that tensorpress encode completed"
            )
        try:
            rows = parse_json(read_file(path))["tensors"]
            self.tensors = {name: _stored(row) for name, row in rows.items()}
            self.shards = {key: _file_name(row["shard"], SHARD) for key, row in rows.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise CorruptFileError(f"{path} is not a list of encoded tensors: {error!r}") from None
        files = {self.folder / stored.file for stored in self.tensors.values()}
        if len(files) < len(self.tensors):
            raise CorruptFileError(f"{path} has two tensors in one file")
        budget = ReadBudget(sum(file.stat().st_size for file in files if is_file(file)))
        self._limit = budget.limit
        with name_file_in_errors(path):
            budget.work(sum(prod(stored.shape) for stored in self.tensors.values()))
            budget.take(sum(stored.bytes for stored in self.tensors.values()))

    def read(self, name: str) -> Tensor:
        """Decode a tensor.

        Raises
        ------
        DataNotFoundError, CorruptFileError
            If its file is missing or damaged, or has a different tensor.
        """
        stored = self.tensors[name]
        path = self.folder / stored.file
        # Memory for a tensor of the listed size, its symbols and the decoder.
        most = min(self._limit, _FREE_BYTES + _COPIES * stored.bytes)
        values = load_tensors(path, max_bytes=most).get(name)
        if values is None or (values.shape, values.dtype) != (stored.shape, stored.dtype):
            raise CorruptFileError(
                f"{path}: expected {name!r} with the shape and dtype that {ENCODED} lists"
            )
        return values


_FREE_BYTES, _COPIES = 64 << 20, 16


def write_encoded(
    folder: Path, tensors: Mapping[str, StoredTensor], files: Mapping[str, str]
) -> None:
    """Write the file that lists the tensors of an encoded folder."""
    rows = {
        name: {
            "file": files[name],
            "shape": list(stored.shape),
            "dtype": CODES[stored.dtype],
            "shard": stored.file,
        }
        for name, stored in tensors.items()
    }
    write_atomically(folder / ENCODED, json.dumps({"tensors": rows}, indent=1).encode() + b"\n")


def _stored(row: Any) -> StoredTensor:
    shape = tuple(row["shape"])
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"{shape} is no shape")
    stored = StoredTensor(
        f"{TENSORS}/{_file_name(row['file'], '.tpz')}", shape, DTYPES[row["dtype"]]
    )
    stored.empty()  # torch cannot have any shape
    return stored


def _file_name(name: Any, suffix: str) -> str:
    if not isinstance(name, str) or Path(name).name != name or Path(name).suffix != suffix:
        raise ValueError(f"{name!r} is not a {suffix} file of the folder")
    return name
