"""Saves and loads named tensors, such as a state dict, without a model."""

import os
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from tensorpress.codec.container import name_file_in_errors
from tensorpress.codec.decode_tensors import own_values
from tensorpress.codec.header import Description, tensor_table
from tensorpress.codec.model_tensors import check_finite, check_storable
from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.codec.save_load import load
from tensorpress.codec.storage import Request
from tensorpress.codec.tpz_file import open_file, write_file
from tensorpress.errors import InvalidArgumentError, ModelMismatchError


def save_tensors(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    quantizers: Mapping[str, StepQuantizer] | None,
) -> int:
    """Write named tensors to a file that can be read without a model.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Tensors by name, such as a ``state_dict``.
    path : path-like
        The file to write or replace.
    quantizers : mapping of str to StepQuantizer, or None
        The quantizers of the tensors to quantize. Other float32 and float64 tensors are stored as
        float16 if this overflows nowhere, and all else exactly. With None, every bit is kept.

    Returns
    -------
    int
        The size of the file in bytes.

    Raises
    ------
    InvalidArgumentError
        If a tensor cannot be stored or a quantizer has no tensor; the message names it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tensors = {"weight": torch.tensor([[0.26, -0.6]]), "bias": torch.tensor([0.5])}
    ...     size = save_tensors(tensors, f"{folder}/a.tpz", {"weight": StepQuantizer(-16)})
    ...     load_tensors(f"{folder}/a.tpz")
    {'weight': tensor([[ 0.2500, -0.5000]]), 'bias': tensor([0.5000])}
    """
    for name in quantizers or {}:
        if name not in tensors:
            raise InvalidArgumentError(f"there is a quantizer for {name!r}, but no such tensor")
    check_tensors(tensors, finite=quantizers is not None)
    storages: list[Request] = ["coded"] * len(tensors)
    if quantizers is not None:
        storages = [quantizers.get(n) or _half_storage(tensor) for n, tensor in tensors.items()]
    description = Description(None, (), tensor_table(dict(tensors)))
    detached = [tensor.detach() for tensor in tensors.values()]
    return write_file(path, description, detached, storages, "range")


def check_tensors(tensors: Mapping[str, Tensor], *, finite: bool = True) -> None:
    """Raise an `InvalidArgumentError` that names a tensor that no file can store.

    Floating-point tensors that are coded losslessly need not be ``finite``.
    """
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise InvalidArgumentError(f"the name of a tensor must be a string, not {name!r}")
        check_storable(name, tensor)
        if finite or tensor.is_complex():
            check_finite(name, tensor)


def load_tensors(
    path: str | os.PathLike[str], *, max_bytes: int | None = None
) -> dict[str, Tensor]:
    """Read the tensors of a file by name; no model is needed.

    Parameters
    ----------
    path : path-like
        A file of `save_tensors` or of a model. It is untrusted.
    max_bytes : int, optional
        The memory that reading it may take, as for `tensorpress.load`.

    Returns
    -------
    dict of str to Tensor
        The tensors, on the CPU: the ``state_dict`` of a zoo network, or the tensors of another
        model under their names in it.

    Raises
    ------
    CorruptFileError, DataNotFoundError, ModelMismatchError
        As `tensorpress.load` does.
    """
    opened = open_file(path, max_bytes=max_bytes)
    if opened.description.network is not None:
        return dict(load(path, max_bytes=max_bytes).state_dict())
    names = [entry.name for entry in opened.description.tensors]
    if len(set(names)) != len(names):
        raise ModelMismatchError(f"{opened.name} has two tensors of the same name")
    decoded = opened.tensors()
    with name_file_in_errors(path):
        return {
            name: own_values(tensor, opened.budget)
            for name, tensor in zip(names, decoded, strict=True)
        }


def _half_storage(tensor: Tensor) -> Literal["half"] | None:
    """Return "half" for a tensor that does not overflow float16, else None."""
    floats = tensor.dtype in (torch.float32, torch.float64)
    return "half" if floats and bool(torch.isfinite(tensor.half()).all()) else None
