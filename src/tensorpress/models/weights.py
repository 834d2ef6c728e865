"""Weights of a model from a safetensors file or a file of ``torch.save``."""

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
"""Suffixes of pickled files."""

_PREFIXES = ("module.", "model.", "_orig_mod.")
_NESTED = ("state_dict", "model")

logger = logging.getLogger("tensorpress.models")


def load_weights(model: nn.Module, path: Path, *, new_head: int | None = None) -> None:
    """Load the weights of a model from a file with exactly its names and shapes.

    Parameters
    ----------
    model : nn.Module
        The model.
    path : Path
        A safetensors file, or a state dict written by ``torch.save``. Only tensors and plain data
        are read from the latter; code in it is never run.
    new_head : int, optional
        Number of classes, if the head may differ from that in the file. Tensors that differ only in
        this number do not change, and the log names them.

    Raises
    ------
    DataNotFoundError, CorruptFileError, ModelMismatchError
        If the file is missing, damaged or does not fit; see `tensorpress.models.zoo.load_weights`.
        The message points out if names differ only by a prefix.
    """
    weights = read_state_dict(path) if path.suffix in PICKLED else read_weights(path)
    if new_head is not None:
        weights = _replace_head(model, weights, new_head, path)
    try:
        fill_model(model, weights, path)
    except ModelMismatchError as error:
        raise ModelMismatchError(f"{error}{_prefix_hint(model, weights)}") from None


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an untrusted file written by ``torch.save``.

    The state dict may be under a key ``state_dict`` or ``model``, as in checkpoints.

    Raises
    ------
    DataNotFoundError
        If there is no such file.
    CorruptFileError
        If the file is damaged, or has anything other than tensors by name.
    """
    check_file(path, "weight file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CorruptFileError(
            f"{path} has more than tensors, and pickle would run code from the file to read it. If "
            "you trust it, load it elsewhere and save only its state dict"
        ) from None
    except Exception as error:  # zip archive and pickle raise errors of many classes
        reason = str(error) or type(error).__name__
        raise CorruptFileError(f"{path} is not a complete torch.save file: {reason}") from error
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(x, Tensor) for x in content.values()):
        raise CorruptFileError(f"{path} is not a state dict: expected tensors by name")
    return dict(content)


def refuse_pickle(path: Path) -> InvalidArgumentError:
    """Return the error for a pickled file in a folder."""
    return InvalidArgumentError(
        f"{path} is a pickle file, which can run any code when it is read. If you trust it, "
        "convert it once: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
        f"'{path.stem}.safetensors')"
    )


def _replace_head(
    model: nn.Module, weights: Mapping[str, Tensor], classes: int, path: Path
) -> dict[str, Tensor]:
    """Replace tensors of a head for other classes by those of the model."""
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
        logger.info("%s is for other classes: %s are freshly initialized", path, names)
    return {**weights, **{name: state[name] for name in others}}


def _prefix_hint(model: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Return a hint if names in file and model differ by a prefix."""
    names, expected = set(weights), set(model.state_dict())
    for prefix in _PREFIXES:
        if {f"{prefix}{name}" for name in expected} & names and not expected & names:
            return f". Names in the file start with {prefix!r}: save them without it"
        if {f"{prefix}{name}" for name in names} & expected and not expected & names:
            return f". Names in the model start with {prefix!r}, but not in the file"
    return ""
