"""Reader of CIFAR-10 in its two published formats, binary and Python."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tensorpress.data.images import ImageSet
from tensorpress.errors import CorruptFileError, DataNotFoundError

BINARY_FOLDER = "cifar-10-batches-bin"
PYTHON_FOLDER = "cifar-10-batches-py"
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")

_CLASSES = 10
_PIXELS = 3 * 32 * 32
_RECORD = 1 + _PIXELS

_ByteArray = npt.NDArray[np.uint8]


def read_cifar10(root: Path) -> tuple[ImageSet, ImageSet]:
    """Read CIFAR-10 from its unpacked archive.

    Parameters
    ----------
    root : Path
        Folder with ``cifar-10-batches-bin``, which is preferred, or ``cifar-10-batches-py``.

    Returns
    -------
    train, test : ImageSet
        Images of shape ``(N, 3, 32, 32)`` in their official order.

    Raises
    ------
    DataNotFoundError
        If neither folder has all six batches.
    CorruptFileError
        If a batch is damaged, or batches differ in length.

    References
    ----------
    A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009; the formats are
    described on the dataset's page.
    """
    for folder, suffix, read in (
        (root / BINARY_FOLDER, ".bin", read_binary_batch),
        (root / PYTHON_FOLDER, "", read_python_batch),
    ):
        paths = [folder / f"{name}{suffix}" for name in BATCHES]
        if all(path.is_file() for path in paths):
            batches = [read(path) for path in paths]
            for path, batch in zip(paths, batches, strict=True):
                if len(batch) != len(batches[0]):
                    raise CorruptFileError(
                        f"{path} has {len(batch)} images but {paths[0]} has {len(batches[0])}: "
                        "all batches must have the same number"
                    )
            return _concatenate(batches[:-1]), batches[-1]
    raise DataNotFoundError(
        f"{root} has neither {BINARY_FOLDER} nor {PYTHON_FOLDER} with all of: {', '.join(BATCHES)}"
    )


def read_binary_batch(path: Path) -> ImageSet:
    """Read a batch of the binary version: records of a label byte and 3,072 pixel bytes.

    Raises
    ------
    CorruptFileError
        If the file is not a whole number of records, or a label is above 9.
    """
    content = np.fromfile(path, np.uint8)
    if content.size == 0 or content.size % _RECORD:
        raise CorruptFileError(f"{path} has {content.size} bytes, expected a multiple of {_RECORD}")
    records = torch.from_numpy(content).reshape(-1, _RECORD)
    return _make_image_set(path, records[:, 1:], records[:, 0].long())


def read_python_batch(path: Path) -> ImageSet:
    """Read a batch of the Python version without running any code in it.

    The pickle may only refer to the three globals of NumPy arrays that the official files need; any
    other name is rejected before it is looked up.

    Raises
    ------
    CorruptFileError
        If the file is not such a pickle, or its arrays have the wrong shape.
    """
    try:
        with path.open("rb") as stream:
            batch = _ArrayUnpickler(stream, encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise any of a dozen types
        raise CorruptFileError(f"{path} is not a CIFAR-10 Python batch: {error}") from error
    pixels, labels = _check_arrays(path, batch)
    return _make_image_set(path, torch.from_numpy(pixels.copy()), torch.tensor(labels))


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that accepts only built-in containers and NumPy arrays."""

    # The module of this function was renamed in NumPy 2; an array returns it without a private
    # import.
    _RECONSTRUCT = np.empty(0).__reduce__()[0]
    _ALLOWED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}, which is not allowed"
            ) from None


def _check_arrays(path: Path, batch: object) -> tuple[_ByteArray, list[int]]:
    pixels = batch.get(b"data") if isinstance(batch, dict) else None
    labels = batch.get(b"labels") if isinstance(batch, dict) else None
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != _PIXELS
        or len(pixels) == 0
    ):
        raise CorruptFileError(
            f"{path}: expected a uint8 array with {_PIXELS} columns under 'data'"
        )
    if (
        not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(type(label) is int and 0 <= label < _CLASSES for label in labels)
    ):
        raise CorruptFileError(
            f"{path}: expected a list of {len(pixels)} integers from 0 to 9 under 'labels'"
        )
    return pixels, labels


def _make_image_set(path: Path, pixels: Tensor, labels: Tensor) -> ImageSet:
    if labels.max() >= _CLASSES:
        raise CorruptFileError(f"{path} has the label {int(labels.max())}, expected 0 to 9")
    return ImageSet(pixels.reshape(-1, 3, 32, 32), labels)


def _concatenate(parts: list[ImageSet]) -> ImageSet:
    return ImageSet(
        torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    )
