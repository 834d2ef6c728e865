"""Weights of a model from a safetensors file, or from one that torch saved."""

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tensorpress.errors import (
    CorruptFileError,
    InvalidArgumentError,
    ModelMismatchError,
)
from tensorpress.models.zoo.weights import fill_model, read_weights
from tensorpress.utils.formatting import format_names
from tensorpress.utils.paths import check_file

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
"""Suffixes of files that torch reads with pickle."""

_PREFIXES = ("module.", "model.", "_orig_mod.")
_NESTED = ("state_dict", "model")

logger = logging.getLogger("tensorpress.models")


def load_weights(model: nn.Module, path: Path, *, new_head: int | None = None) -> None:
    """Load the weights of a model from a file that has exactly its names and shapes.

    Parameters
    ----------
    model : nn.Module
        The model.
    path : Path
        A safetensors file, or a state dict that ``torch.save`` wrote. Of the latter nothing but
        tensors and plain data is read: code in it is never run.
    new_head : int, optional
        The number of classes of a model whose head may be for another number than the file's. The
        tensors that differ in this alone stay as they are, and the log names them.

    Raises
    ------
    DataNotFoundError, CorruptFileError, ModelMismatchError
        If the file is missing, damaged or does not fit; see `tensorpress.models.zoo.load_weights`.
        The message says so where the names differ only by a prefix.
    """
    weights = read_state_dict(path) if path.suffix in PICKLED else read_weights(path)
    if new_head is not None:
        weights = _replace_head(model, weights, new_head, path)
    try:
        fill_model(model, weights, path)
    except ModelMismatchError as error:
        raise ModelMismatchError(f"{error}{_prefix_hint(model, weights)}") from None


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that ``torch.save`` wrote, which is not trusted.

    The state dict may be the value of a key ``state_dict`` or ``model``, as checkpoints have it.

    Raises
    ------
    DataNotFoundError
        If there is no such file.
    CorruptFileError
        If the file is damaged, or holds something else than tensors by name.
    """
    check_file(path, "weight file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CorruptFileError(
            f"{path} holds more than tensors, which pickle could only read by running code that is "
            "in it. Convert it where you trust it: save the state dict alone"
        ) from None
    except Exception as error:  # of the zip archive or of pickle, of any kind
        reason = str(error) or type(error).__name__
        raise CorruptFileError(f"{path} is not a complete file of torch.save: {reason}") from error
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(x, Tensor) for x in content.values()):
        raise CorruptFileError(f"{path} is no state dict: expected tensors by name")
    return dict(content)


def refuse_pickle(path: Path) -> InvalidArgumentError:
    """Return the error for a file of a folder that only pickle can read."""
    return InvalidArgumentError(
        f"{path} is read with pickle, which can run any code that is in it. Convert it once where "
        "you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
        f"'{path.stem}.safetensors')"
    )


def _replace_head(
    model: nn.Module, weights: Mapping[str, Tensor], classes: int, path: Path
) -> dict[str, Tensor]:
    """Return weights in which the tensors of a head for other classes are those of the model."""
    state = model.state_dict()
    others = [
        name
        for name, tensor in weights.items()
        if name in state
        and tensor.shape != state[name].shape
        and state[name].shape[:1] == (classes,)
        and tensor.shape[1:] == state[name].shape[1:]
    ]
    if others:
        names = format_names(others)
        logger.info("%s is of other classes: %s stay as initialized", path, names)
    return {**weights, **{name: state[name] for name in others}}


def _prefix_hint(model: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Return text on a prefix by which the names of file and model differ, or nothing."""
    names, expected = set(weights), set(model.state_dict())
    for prefix in _PREFIXES:
        if {f"{prefix}{name}" for name in expected} & names and not expected & names:
            return f". The names in the file begin with {prefix!r}: save them without it"
        if {f"{prefix}{name}" for name in names} & expected and not expected & names:
            return f". The model's names begin with {prefix!r}, those in the file do not"
    return ""
