"""Reader of SVHN's official files of cropped digits, in MATLAB's format."""

from pathlib import Path

import numpy as np
import torch

from tensorpress.data.images import ImageSet
from tensorpress.errors import CorruptFileError, DataNotFoundError
from tensorpress.models.optional_imports import require

SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")
_CLASSES = 10


def has_svhn(folder: Path) -> bool:
    """Return whether a folder has the official files."""
    return all((folder / name).is_file() for name in SVHN_FILES)


def read_svhn(folder: Path) -> tuple[ImageSet, ImageSet]:
    """Read the street view house numbers of a folder.

    Returns
    -------
    train, test : ImageSet
        Images of shape ``(N, 3, 32, 32)`` in their official order. The digit 0, whose label is 10
        in the files, gets the label 0.

    Raises
    ------
    DataNotFoundError
        If a file is missing.
    CorruptFileError
        If a file is damaged or has other arrays.

    References
    ----------
    Y. Netzer et al., "Reading digits in natural images with unsupervised feature learning", NIPS
    workshop 2011, http://ufldl.stanford.edu/housenumbers/ (format 2).
    """
    if not has_svhn(folder):
        raise DataNotFoundError(f"{folder} does not have all of: {', '.join(SVHN_FILES)}")
    train, test = (_read_mat(folder / name) for name in SVHN_FILES)
    return train, test


def _read_mat(path: Path) -> ImageSet:
    matlab = require("scipy.io", "SVHN's official files")
    try:
        content = matlab.loadmat(path)
        pixels, labels = np.asarray(content["X"]), np.asarray(content["y"]).flatten()
    except Exception as error:  # a damaged file can raise any of a dozen types
        raise CorruptFileError(f"{path} is not a file of SVHN: {error!r}") from error
    if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, len(labels)) or not len(labels):
        raise CorruptFileError(
            f"{path}: expected uint8 pixels of shape (32, 32, 3, N) under X and N labels under y, "
            f"got {pixels.dtype} of shape {pixels.shape} and {len(labels)} labels"
        )
    if not np.isin(labels, np.arange(1, _CLASSES + 1)).all():
        raise CorruptFileError(f"{path} has labels outside 1 to {_CLASSES}")
    images = np.ascontiguousarray(pixels.transpose(3, 2, 0, 1))
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64) % _CLASSES))
