"""The tensors of an encoded folder, decoded one at a time."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tensorpress.checkpoints.safetensors_reader import DTYPES, StoredTensor, TensorFiles
from tensorpress.checkpoints.safetensors_writer import CODES
from tensorpress.codec.state_dict import load_tensors
from tensorpress.errors import CorruptFileError, DataNotFoundError
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.config_parsing import parse_json

ENCODED = "encoded.json"
"""The file that lists the tensors of an encoded folder; it is written last."""

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
        If ``encoded.json`` is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        path = self.folder / ENCODED
        if not path.is_file():
            raise DataNotFoundError(
                f"{folder} has no {ENCODED}: expected a folder that tensorpress encode completed"
            )
        try:
            rows = parse_json(path.read_bytes())["tensors"]
            self.tensors = {name: _stored(row) for name, row in rows.items()}
            self.shards = {name: _file_name(row["shard"]) for name, row in rows.items()}
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise CorruptFileError(f"{path} is not a list of encoded tensors: {error!r}") from None

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
        values = load_tensors(path, max_bytes=_FREE_BYTES + _COPIES * stored.bytes).get(name)
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
    return StoredTensor(f"{TENSORS}/{_file_name(row['file'])}", shape, DTYPES[row["dtype"]])


def _file_name(name: Any) -> str:
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError(f"{name!r} is no file of the folder")
    return name
