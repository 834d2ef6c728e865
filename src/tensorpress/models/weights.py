"""Weights of a model from a safetensors file."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.models import zoo

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
"""Suffixes of files that torch reads with pickle."""

_PREFIXES = ("module.", "model.", "_orig_mod.")


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the weights of a model from a safetensors file that has exactly its names and shapes.

    Raises
    ------
    InvalidArgumentError
        If the file is one that only pickle can read.
    TensorPressError
        If `tensorpress.models.zoo.load_weights` raises. The message says so where the names differ
        only by a prefix.
    """
    if path.suffix in PICKLED:
        raise refuse_pickle(path)
    try:
        zoo.load_weights(model, path)
    except ModelMismatchError as error:
        raise ModelMismatchError(f"{error}{_prefix_hint(model, path)}") from None


def refuse_pickle(path: Path) -> InvalidArgumentError:
    """Return the error for a file that only pickle can read."""
    return InvalidArgumentError(
        f"{path} is read with pickle, which can run any code that is in it. Convert it once where "
        "you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
        f"'{path.stem}.safetensors')"
    )


def _prefix_hint(model: nn.Module, path: Path) -> str:
    """Return text on a prefix by which the names of file and model differ, or nothing."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
    except SafetensorError:
        return ""
    expected = set(model.state_dict())
    for prefix in _PREFIXES:
        if {f"{prefix}{name}" for name in expected} & names and not expected & names:
            return f". The names in the file begin with {prefix!r}: save them without it"
        if {f"{prefix}{name}" for name in names} & expected and not expected & names:
            return f". The model's names begin with {prefix!r}, those in the file do not"
    return ""
