"""Writing safetensors files tensor by tensor, in any order, and the index of a sharded model."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from tensorpress.checkpoints.safetensors_reader import DTYPES, INDEX
from tensorpress.errors import InvalidArgumentError
from tensorpress.utils.atomic_files import replace_file, write_atomically

CODES = {dtype: code for code, dtype in DTYPES.items()}
ALIGNMENT = 8


class ShardWriter:
    """A safetensors file whose header is written before any values are known.

    Use `open_shard_writer`.

    Parameters
    ----------
    file : binary file
        Empty.
    tensors : mapping of str to Tensor
        What the file is to hold; only shapes and types are looked at.

    References
    ----------
    https://huggingface.co/docs/safetensors: length of the header, header as JSON, values.
    """

    def __init__(self, file: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
        self._file = file
        self.missing = dict(tensors)
        # Large types first keep every tensor aligned to its own.
        names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._begins, end = {}, 0
        for name in names:
            tensor, begin = tensors[name], end
            end += _count_bytes(tensor)
            header[name] = {
                "dtype": CODES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
            self._begins[name] = begin
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        file.write(len(text).to_bytes(8, "little") + text)
        self._data = file.tell()

    def write(self, name: str, values: Tensor) -> None:
        """Write a tensor's values in its place.

        Raises
        ------
        InvalidArgumentError
            If the file is not to hold such a tensor, or holds it already.
        """
        expected = self.missing.pop(name, None)
        if expected is None or (expected.shape, expected.dtype) != (values.shape, values.dtype):
            raise InvalidArgumentError(
                f"{name!r}, {values.dtype} of shape {tuple(values.shape)}, is not to be written"
            )
        data = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._file.seek(self._data + self._begins[name])
        self._file.write(data.numpy().data)


@contextmanager
def open_shard_writer(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor]
) -> Iterator[ShardWriter]:
    """Yield a writer whose file is at ``path`` once the block has ended with all tensors written.

    Parameters
    ----------
    path : path
        The file to write or replace.
    tensors : mapping of str to Tensor
        What it is to hold; only shapes and types are looked at, so they may be on the meta device.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be written, or a tensor was not.

    Examples
    --------
    >>> import tempfile
    >>> from safetensors.torch import load_file
    >>> path = f"{tempfile.mkdtemp()}/a.safetensors"
    >>> with open_shard_writer(path, {"x": torch.empty(2, device="meta")}) as shard:
    ...     shard.write("x", torch.tensor([1.0, 2.0]))
    >>> load_file(path)
    {'x': tensor([1., 2.])}
    """
    with replace_file(path) as temporary:
        with temporary.open("wb") as file:
            writer = ShardWriter(file, tensors)
            yield writer
        if writer.missing:
            raise InvalidArgumentError(f"{next(iter(writer.missing))!r} was not written to {path}")


def divide_into_shards(tensors: Mapping[str, Tensor], limit: int) -> dict[str, list[str]]:
    """Return the names of the tensors in each file of a model, in their order.

    A tensor goes into the last file unless that would then be larger than the limit; a tensor that
    is larger by itself gets a file of its own. Files are named as in Hugging Face's layout.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        All tensors; only shapes and types are looked at.
    limit : int
        The size of a file in bytes, without its header.

    Examples
    --------
    >>> tensors = {name: torch.empty(4) for name in "abc"}
    >>> divide_into_shards(tensors, 100)
    {'model.safetensors': ['a', 'b', 'c']}
    >>> list(divide_into_shards(tensors, 32))
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    shards: list[list[str]] = []
    room = 0
    for name, tensor in tensors.items():
        size = _count_bytes(tensor)
        if not shards or size > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    count = len(shards)
    return {
        f"model-{number:05d}-of-{count:05d}.safetensors": names
        for number, names in enumerate(shards, 1)
    }


def write_index(folder: Path, tensors: Mapping[str, Tensor], files: Mapping[str, str]) -> None:
    """Write the file that names the shard of every tensor.

    Parameters
    ----------
    folder : Path
        Where the shards are.
    tensors : mapping of str to Tensor
        All tensors; only shapes and types are looked at.
    files : mapping of str to str
        The file of each.
    """
    total = sum(map(_count_bytes, tensors.values()))
    places = {name: files[name] for name in sorted(tensors)}
    content = {"metadata": {"total_size": total}, "weight_map": places}
    write_atomically(folder / INDEX, json.dumps(content, indent=2).encode() + b"\n")


def _count_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.dtype.itemsize
