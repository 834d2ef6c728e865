"""The index of a model in shards."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tensorpress.checkpoints.tensor_files import INDEX
from tensorpress.files import write_atomically


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
    total = sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())
    places = {name: files[name] for name in sorted(tensors)}
    content = {"metadata": {"total_size": total}, "weight_map": places}
    write_atomically(folder / INDEX, json.dumps(content, indent=2).encode() + b"\n")
