"""Writing of safetensors files tensor by tensor, in any order, and of shard indexes."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from tensorpress.checkpoints.safetensors_reader import DTYPES, INDEX, WEIGHTS
from tensorpress.errors import InvalidArgumentError
from tensorpress.utils.atomic_files import replace_file, write_atomically

CODES = {dtype: code for code, dtype in DTYPES.items()}
ALIGNMENT = 8


class ShardWriter:
    """A safetensors file whose header is written before the values; see `open_shard_writer`.

    Parameters
    ----------
    file : binary file
        An empty file.
    tensors : mapping of str to Tensor
        The tensors of the file; only their shapes and dtypes are read.
    finite : bool
        Whether to reject NaN and infinite values.

    References
    ----------
    https://huggingface.co/docs/safetensors: length of the header, header as JSON, values.
    """

    def __init__(
        self, file: BinaryIO, tensors: Mapping[str, Tensor], *, finite: bool = True
    ) -> None:
        self._file, self._finite = file, finite
        self.missing = dict(tensors)
        # Large dtypes come first, so that every tensor is aligned.
        names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._starts, end = {}, 0
        for name in names:
            tensor, start = tensors[name], end
            end += tensor.nbytes
            header[name] = {
                "dtype": CODES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
            self._starts[name] = start
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        file.write(len(text).to_bytes(8, "little") + text)
        self._data = file.tell()

    def write(self, name: str, values: Tensor) -> None:
        """Write the values of a tensor.

        Raises
        ------
        InvalidArgumentError
            If the header has no such tensor, or its values are already written or not finite.
        """
        expected = self.missing.pop(name, None)
        if expected is None or (expected.shape, expected.dtype) != (values.shape, values.dtype):
            raise InvalidArgumentError(
                f"unexpected tensor {name!r} of shape {tuple(values.shape)} and {values.dtype}"
            )
        floating = self._finite and values.is_floating_point()
        if floating and not bool(torch.isfinite(_readable(values)).all()):
            raise InvalidArgumentError(f"tensor {name!r} has NaN or infinite values")
        data = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._file.seek(self._data + self._starts[name])
        self._file.write(data.numpy().data)


def _readable(values: Tensor) -> Tensor:
    """Return 8-bit values in a dtype that supports `torch.isfinite`."""
    return values.half() if values.itemsize == 1 else values


@contextmanager
def open_shard_writer(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], *, finite: bool = True
) -> Iterator[ShardWriter]:
    """Yield a writer whose file replaces ``path`` at the end of the block.

    Parameters
    ----------
    path : path
        The file to write or replace.
    tensors : mapping of str to Tensor
        The tensors of the file; only their shapes and dtypes are read.
    finite : bool
        Whether to reject NaN and infinite values.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be written, or a tensor is missing at the end of the block.

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
            writer = ShardWriter(file, tensors, finite=finite)
            yield writer
        if writer.missing:
            raise InvalidArgumentError(f"{next(iter(writer.missing))!r} was not written to {path}")


Shards = Mapping[str, Mapping[str, Tensor]]
"""The tensors of each file by name."""


def divide_into_shards(tensors: Mapping[str, Tensor], limit: int) -> Shards:
    """Divide a model's tensors among files in Hugging Face's layout, in order.

    No file has more than ``limit`` bytes of values, unless it has a single tensor.

    Examples
    --------
    >>> tensors = {name: torch.empty(4) for name in "abc"}
    >>> list(divide_into_shards(tensors, 100))
    ['model.safetensors']
    >>> list(divide_into_shards(tensors, 32))
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    shards: list[dict[str, Tensor]] = []
    room = 0
    for name, tensor in tensors.items():
        if not shards or tensor.nbytes > room:
            shards.append({})
            room = limit
        shards[-1][name] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    count = len(shards)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": x for i, x in enumerate(shards, 1)}


def write_index(folder: Path, shards: Shards) -> None:
    """Write the file that says which shard has each tensor."""
    total = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors.values())
    files = {name: file for file, tensors in shards.items() for name in tensors}
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
    write_atomically(folder / INDEX, json.dumps(content, indent=2).encode() + b"\n")
