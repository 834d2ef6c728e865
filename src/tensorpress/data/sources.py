"""Data sources by name: a dataset, a file, a folder or a function."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tensorpress.data.arrays import read_arrays
from tensorpress.data.cifar import BINARY_FOLDER, PYTHON_FOLDER, read_cifar10
from tensorpress.data.functions import read_function
from tensorpress.data.image_folders import read_image_folder
from tensorpress.data.images import ImageSet
from tensorpress.data.mnist import find_idx, read_mnist
from tensorpress.data.registry import DATASETS, ROOT_VARIABLE, load
from tensorpress.data.saved_datasets import SAVED_FILES, read_parquet, read_saved_dataset
from tensorpress.data.source import Source
from tensorpress.data.svhn import has_svhn, read_svhn
from tensorpress.data.texts import read_json_lines, read_text
from tensorpress.errors import DataNotFoundError, InvalidArgumentError, unknown_name
from tensorpress.utils.paths import check_file, did_you_mean, exists

FILES: dict[str, Callable[[Path], Source]] = {
    ".npy": read_arrays,
    ".npz": read_arrays,
    ".safetensors": read_arrays,
    ".txt": read_text,
    ".jsonl": read_json_lines,
    ".parquet": read_parquet,
}
"""Readers of files by suffix."""


def open_source(name: str, root: str | os.PathLike[str] | None = None) -> Source:
    """Open a data source by name.

    Parameters
    ----------
    name : str
        A name in `DATASETS`; ``package.module:function``, which returns batches, a dataset, or a
        mapping of parts; or the path of a folder or file, which may be relative to the data folder.
        A folder has one folder of images per class, a dataset saved by `datasets`, Parquet files,
        or the official files of MNIST, CIFAR-10 or SVHN. A file has arrays (``.npy``, ``.npz``,
        ``.safetensors``), texts (``.txt``, ``.jsonl``) or rows (``.parquet``).
    root : path, optional
        The data folder; by default that in the environment variable ``TENSORPRESS_DATA``.

    Returns
    -------
    Source
        The examples as they are stored. `tensorpress.data.model_batches` turns them into inputs.

    Raises
    ------
    InvalidArgumentError
        If the name is none of these, or the files have an unknown format.
    DataNotFoundError, CorruptFileError
        If files are missing or damaged.
    TensorPressError
        If a package is missing; the message names it.

    Examples
    --------
    >>> source = open_source("digits")
    >>> len(source.train), len(source.test)
    (1201, 596)
    """
    if name in DATASETS:
        splits = load(name, root)
        return Source(name, splits.test, splits.train)
    path = find_path(name, root)
    if path is not None:
        return replace(_read_path(path), name=name)
    module, colon, function = name.partition(",")[0].rpartition(":")
    if colon and function.isidentifier() and module.replace(".", "").isidentifier():
        return read_function(name)
    if os.sep in name or Path(name).suffix in FILES:
        raise DataNotFoundError(
            f"there is no file or folder {name}{_searched(root)}{_near(name, root)}"
        )
    error = unknown_name("dataset", name, DATASETS)
    raise InvalidArgumentError(
        f"{error}. Other data can be the path of a folder or file, or package.module:function, but "
        f"there is no {name}{_searched(root)}{_near(name, root)}"
    )


def find_path(name: str, root: str | os.PathLike[str] | None) -> Path | None:
    """Return a path, itself or in the data folder, or None if neither exists."""
    folder = root if root is not None else os.environ.get(ROOT_VARIABLE)
    places = [Path(name), *([Path(folder, name)] if folder else [])]
    return next((place for place in places if name and exists(place)), None)


def short_name(name: str) -> str:
    """Return a short name for data in files: a name, or the last part of a path.

    Examples
    --------
    >>> short_name("mnist"), short_name("/home/me/flowers/"), short_name("mine:flowers")
    ('mnist', 'flowers', 'mine:flowers')
    """
    return Path(name).name or name


def _searched(root: str | os.PathLike[str] | None) -> str:
    folder = root if root is not None else os.environ.get(ROOT_VARIABLE)
    return f", neither here nor in {os.fspath(folder)}" if folder else ""


def _near(name: str, root: str | os.PathLike[str] | None) -> str:
    folder = root if root is not None else os.environ.get(ROOT_VARIABLE)
    return did_you_mean(name) or (did_you_mean(Path(folder, name)) if folder else "")


def _read_path(path: Path) -> Source:
    if path.is_dir():
        return _read_folder(path)
    reader = FILES.get(path.suffix.lower())
    if reader is None:
        raise InvalidArgumentError(
            f"{path} is not a data file: expected a name that ends with {', '.join(FILES)}"
        )
    return reader(check_file(path))


def _read_folder(folder: Path) -> Source:
    """Read a folder with the reader for its files."""
    official: Callable[[Path], tuple[ImageSet, ImageSet]] | None = None
    if find_idx(folder) is not None:
        official = read_mnist
    elif (folder / BINARY_FOLDER).is_dir() or (folder / PYTHON_FOLDER).is_dir():
        official = read_cifar10
    elif has_svhn(folder):
        official = read_svhn
    if official is not None:
        train, test = official(folder)
        return Source(str(folder), test, train)
    if any((folder / name).is_file() for name in SAVED_FILES):
        return read_saved_dataset(folder)
    if next(folder.rglob("*.parquet"), None) is not None:
        return read_parquet(folder)
    return read_image_folder(folder)
