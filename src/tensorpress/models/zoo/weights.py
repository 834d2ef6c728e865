"""Reading and writing of weights in safetensors files."""

import os
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tensorpress.errors import CorruptFileError, ModelMismatchError
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.paths import check_file

_LISTED = 5
# BatchNorm's counter of batches does not affect the outputs, and many published files omit it.
_OPTIONAL = "num_batches_tracked"


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Fill the parameters and buffers of a model from a safetensors file.

    Everything is checked first: after an error the model is unchanged.

    Parameters
    ----------
    model : Module
        The model. Its ``state_dict`` must have exactly the names and shapes in the file, except for
        the counters ``num_batches_tracked`` of batch norms, which the file may omit.
    path : path
        The file.

    Raises
    ------
    DataNotFoundError
        If there is no such file.
    CorruptFileError
        If it is not a safetensors file, is truncated, or has NaN or infinite values.
    ModelMismatchError
        If a tensor is missing, is not in the model, or has another shape or kind of dtype.

    Examples
    --------
    >>> import tempfile
    >>> from tensorpress.models import zoo
    >>> first, second = zoo.build("lenet5"), zoo.build("lenet5")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_weights(first, f"{folder}/lenet5.safetensors")
    ...     load_weights(second, f"{folder}/lenet5.safetensors")
    >>> torch.equal(first.ip1.weight, second.ip1.weight)
    True
    """
    path = Path(path)
    fill_model(model, read_weights(path), path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises
    ------
    DataNotFoundError
        If there is no such file.
    CorruptFileError
        If it is not a safetensors file, or is truncated.
    """
    check_file(path, "weight file")
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: an unknown type
        raise CorruptFileError(f"{path} is not a complete safetensors file: {error}") from error


def fill_model(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Fill the parameters and buffers of a model from a file's tensors; see `load_weights`.

    Parameters
    ----------
    model : Module
        The model.
    weights : mapping of str to Tensor
        The tensors by name.
    path : Path
        The file, for messages.
    """
    state: dict[str, Tensor] = model.state_dict()
    tensors = dict(weights)
    for name in state.keys() - tensors.keys():
        if name.rpartition(".")[2] == _OPTIONAL:
            tensors[name] = state[name]
    _check_names(f"{path} does not fit {type(model).__name__}", state, tensors)
    for name, tensor in tensors.items():
        _check_tensor(path, name, tensor, state[name])
    model.load_state_dict(tensors)


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the parameters and buffers of a model to a safetensors file.

    An incomplete file never appears: it is written under a temporary name in the same folder,
    flushed to disk and renamed.

    Parameters
    ----------
    model : Module
        The model. Tensors that several names share are written once for each name.
    path : path
        The file to write or replace; its folder must exist.

    Raises
    ------
    DataNotFoundError
        If the folder does not exist.

    Examples
    --------
    >>> import tempfile
    >>> from tensorpress.models import zoo
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_weights(zoo.build("lenet300100"), f"{folder}/lenet.safetensors")
    ...     sorted(load_file(f"{folder}/lenet.safetensors"))[:2]
    ['ip1.bias', 'ip1.weight']
    """
    # Clones, because safetensors rejects tensors that share memory.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    write_atomically(path, save(tensors))


def _check_names(complaint: str, expected: Collection[str], names: Collection[str]) -> None:
    missing = [name for name in expected if name not in names]
    surplus = [name for name in names if name not in expected]
    if missing:
        raise ModelMismatchError(
            f"{complaint}: it lacks {_list_names(missing, surplus or names, 'in the file')}"
        )
    if surplus:
        raise ModelMismatchError(
            f"{complaint}: the model has no {_list_names(surplus, expected, 'in the model')}"
        )


def _list_names(names: list[str], others: Iterable[str], where: str) -> str:
    candidates = list(others)
    parts = []
    for name in names[:_LISTED]:
        near = get_close_matches(name, candidates, n=1)
        parts.append(repr(name) + (f" (nearest {where}: {near[0]!r})" if near else ""))
    rest = len(names) - _LISTED
    return ", ".join(parts) + (f" and {rest} more" if rest > 0 else "")


def _check_tensor(path: Path, name: str, tensor: Tensor, expected: Tensor) -> None:
    if tensor.shape != expected.shape:
        raise ModelMismatchError(
            f"{path}: {name!r} has shape {tuple(tensor.shape)}, "
            f"but the model expects {tuple(expected.shape)}"
        )
    if tensor.is_floating_point() != expected.is_floating_point():
        raise ModelMismatchError(
            f"{path}: {name!r} is {tensor.dtype}, but the model expects {expected.dtype}"
        )
    if not torch.isfinite(tensor).all():
        raise CorruptFileError(f"{path}: {name!r} has NaN or infinite values")
