"""Named tensors without a model in a `.tpz` file: a state dict in, a state dict out."""

import os
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from tensorpress.codec.header import Description, tensor_table
from tensorpress.codec.model_tensors import DTYPES, check_finite
from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.codec.save_load import load
from tensorpress.codec.tpz_file import open_file, write_file
from tensorpress.errors import InvalidArgumentError, ModelMismatchError


def save_tensors(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    quantizers: Mapping[str, StepQuantizer],
) -> int:
    """Write named tensors to a file that needs no model to be read.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Such as a ``state_dict``.
    path : path-like
        The file to write or replace.
    quantizers : mapping of str to StepQuantizer
        Of the tensors to quantize. Of the others, float32 and float64 tensors are stored as float16
        where that can hold them, and all else exactly.

    Returns
    -------
    int
        Bytes of the file.

    Raises
    ------
    InvalidArgumentError
        Naming a tensor that cannot be stored, or a quantizer of no tensor.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tensors = {"weight": torch.tensor([[0.26, -0.6]]), "bias": torch.tensor([0.5])}
    ...     size = save_tensors(tensors, f"{folder}/a.tpz", {"weight": StepQuantizer(-16)})
    ...     load_tensors(f"{folder}/a.tpz")
    {'weight': tensor([[ 0.2500, -0.5000]]), 'bias': tensor([0.5000])}
    """
    for name in quantizers:
        if name not in tensors:
            raise InvalidArgumentError(f"there is a quantizer for {name!r}, but no such tensor")
    for name, tensor in tensors.items():
        check_storable(name, tensor)
    storages = [quantizers.get(name) or _plain(tensor) for name, tensor in tensors.items()]
    description = Description(None, (), tensor_table(dict(tensors)))
    detached = [tensor.detach() for tensor in tensors.values()]
    return write_file(path, description, detached, storages, "range")


def check_storable(name: str, tensor: object) -> None:
    """Raise an `InvalidArgumentError` that names what no file can hold."""
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        raise InvalidArgumentError(f"{name!r} is {type(tensor).__name__}, not a Tensor by its name")
    if tensor.is_meta or tensor.layout is not torch.strided or tensor.dtype not in DTYPES.values():
        kind = "without values" if tensor.is_meta else f"{tensor.dtype} and {tensor.layout}"
        raise InvalidArgumentError(f"tensor {name!r} is {kind}: it cannot be stored")
    check_finite(name, tensor)


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a file by name; no model is needed.

    Parameters
    ----------
    path : path-like
        A file of `save_tensors`, or of a model. It is not trusted, and what is allocated is bounded
        by its size.

    Returns
    -------
    dict of str to Tensor
        On the CPU. Of a network of the zoo the ``state_dict``, of any other pressed model the
        factors under the names they have in it.

    Raises
    ------
    CorruptFileError, DataNotFoundError, ModelMismatchError
        As `tensorpress.load` does.
    """
    opened = open_file(path)
    if opened.description.network is not None:
        return dict(load(path).state_dict())
    names = [entry.name for entry in opened.description.tensors]
    if len(set(names)) != len(names):
        raise ModelMismatchError(f"{opened.name} has two tensors of one name")
    return {name: tensor.values for name, tensor in zip(names, opened.tensors(), strict=True)}


def _plain(tensor: Tensor) -> Literal["half"] | None:
    floats = tensor.dtype in (torch.float32, torch.float64)
    return "half" if floats and bool(torch.isfinite(tensor.half()).all()) else None
