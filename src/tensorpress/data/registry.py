"""The data sets that can be loaded by name, and how their files are found."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from tensorpress.data.cifar import BATCHES, BINARY_FOLDER, PYTHON_FOLDER, read_cifar10
from tensorpress.data.digits import read_digits
from tensorpress.data.images import ImageSet, Splits
from tensorpress.data.mnist import IDX_FILES, find_idx, read_mnist
from tensorpress.data.svhn import SVHN_FILES, read_svhn
from tensorpress.data.video_clips import CLIPS_PER_DIGIT, FRAMES, SIDE, read_moving_digits
from tensorpress.errors import DataNotFoundError, InvalidArgumentError, unknown_name

ROOT_VARIABLE = "TENSORPRESS_DATA"


@dataclass(frozen=True)
class DataSet:
    """A data set that `load` knows.

    Parameters
    ----------
    name : str
        The name under which `load` knows it.
    description : str
        One line of text.
    shape : tuple of int
        Channels, height and width of its images; of clips, frames come second.
    classes : int
        The number of classes.
    read : callable
        Function of the data folder that reads the official training and test images.
    download : str or None
        Text that says where to get the files and where to put them; None if none are needed.
    group : int
        Number of consecutive training images made from one original, which are not divided between
        training and validation.

    Examples
    --------
    >>> DATASETS["cifar10"].shape, DATASETS["cifar10"].classes
    ((3, 32, 32), 10)
    """

    name: str
    description: str
    shape: tuple[int, ...]
    classes: int
    read: Callable[[Path], tuple[ImageSet, ImageSet]]
    download: str | None
    group: int = 1


def _idx_data_set(name: str, description: str, url: str) -> DataSet:
    files = ", ".join(f"{file}.gz" for file in IDX_FILES)
    return DataSet(
        name,
        description,
        shape=(1, 28, 28),
        classes=10,
        read=lambda root: read_mnist(root / name),
        download=f"put {files} from {url} in a folder {name!r}",
    )


_KNOWN = (
    DataSet(
        "digits",
        "1,797 handwritten digits of UCI, which come with the package; every third one is test",
        shape=(1, 8, 8),
        classes=10,
        read=lambda root: read_digits(),
        download=None,
    ),
    DataSet(
        "moving-digits",
        "7,188 generated clips, 4 of each of these digits; to tell: which digit, left or right",
        shape=(1, FRAMES, SIDE, SIDE),
        classes=20,
        read=lambda root: read_moving_digits(),
        download=None,
        group=CLIPS_PER_DIGIT,
    ),
    _idx_data_set(
        "mnist",
        "60,000 + 10,000 handwritten digits",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    _idx_data_set(
        "fashion-mnist",
        "60,000 + 10,000 pictures of clothing in the form of MNIST",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    DataSet(
        "cifar10",
        "50,000 + 10,000 colour photographs of animals and vehicles",
        shape=(3, 32, 32),
        classes=10,
        read=read_cifar10,
        download=(
            "unpack https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz (or "
            "cifar-10-python.tar.gz from the same page), which makes the folder "
            f"{BINARY_FOLDER!r} (or {PYTHON_FOLDER!r}) with {BATCHES[0]} to {BATCHES[-2][-1]} "
            f"and {BATCHES[-1]}"
        ),
    ),
    DataSet(
        "svhn",
        "73,257 + 26,032 colour photographs of house numbers",
        shape=(3, 32, 32),
        classes=10,
        read=lambda root: read_svhn(root / "svhn"),
        download=(
            f"put {' and '.join(SVHN_FILES)} from http://ufldl.stanford.edu/housenumbers/ in a "
            "folder 'svhn'"
        ),
    ),
)

DATASETS: Mapping[str, DataSet] = MappingProxyType({data.name: data for data in _KNOWN})
"""The data sets by name. `load` also takes the name of any other folder of MNIST form."""


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    validation: int = 0,
    size: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Splits:
    """Load a data set into memory.

    Parameters
    ----------
    name : str
        A name in `DATASETS`, or that of a folder in ``root`` with the four files of MNIST.
    root : path, optional
        The folder the data sets lie in; by default the one that the environment variable
        ``TENSORPRESS_DATA`` names. "digits" and "moving-digits" need none.
    validation : int
        Number of training images to set aside for validation. For "moving-digits" it is a multiple
        of 4, because the clips of a digit stay together.
    size : tuple of int, optional
        Height and width in pixels to resize the images to. Clips cannot be resized.
    seed : int
        Decides which training images become validation images, and nothing else.

    Returns
    -------
    Splits
        Training and validation images in their official order, and the official test images.

    Raises
    ------
    InvalidArgumentError
        If the name is unknown, the images cannot have the size, or ``validation`` is negative,
        leaves nothing to train on or divides the clips of a digit.
    DataNotFoundError
        If files are missing; the message says which, where to get them and where to put them.
    CorruptFileError
        If a file is truncated or has another format.

    Examples
    --------
    >>> digits = load("digits", validation=200)
    >>> len(digits.train), len(digits.validation), len(digits.test)
    (1001, 200, 596)
    """
    train, test = _read_parts(name, root)
    if size is not None:
        train, test = train.resize(*size), test.resize(*size)
    group = DATASETS[name].group if name in DATASETS else 1
    return set_aside(name, train, test, validation, group=group, seed=seed)


def set_aside(
    name: str, train: ImageSet, test: ImageSet, validation: int, *, group: int = 1, seed: int = 0
) -> Splits:
    """Return images with some of those for training set aside for validation.

    Parameters
    ----------
    name : str
        The name of the data, for messages.
    train, test : ImageSet
        The images.
    validation : int
        The number of training images that validate, drawn at random.
    group : int
        Number of consecutive training images that stay together.
    seed : int
        Decides which images validate.

    Raises
    ------
    InvalidArgumentError
        If ``validation`` is negative, leaves nothing to train on or divides a group.
    """
    if not 0 <= validation < len(train):
        raise InvalidArgumentError(
            f"validation must be from 0 to {len(train) - 1} of the {len(train)} training images "
            f"of {name!r}, not {validation}"
        )
    if validation % group:
        raise InvalidArgumentError(
            f"validation must be a multiple of {group}, the number of training images made from "
            f"one original of {name!r}, not {validation}"
        )
    order = _shuffle_groups(len(train), group, seed)
    return Splits(
        train=train.subset(order[validation:].sort().values),
        validation=train.subset(order[:validation].sort().values),
        test=test,
    )


def _shuffle_groups(count: int, group: int, seed: int) -> torch.Tensor:
    """Return the numbers below ``count`` in random order, those of a group in a row."""
    groups = torch.randperm(count // group, generator=torch.Generator().manual_seed(seed))
    return (groups[:, None] * group + torch.arange(group)).flatten()


def _read_parts(name: str, root: str | os.PathLike[str] | None) -> tuple[ImageSet, ImageSet]:
    data = DATASETS.get(name)
    folder = root if root is not None else os.environ.get(ROOT_VARIABLE) or None
    if data is None:
        other = Path(folder, name) if folder is not None and Path(name).name == name else None
        if other is None or find_idx(other) is None:
            raise unknown_name("data set", name, DATASETS)
        return read_mnist(other)
    if data.download is None:
        return data.read(Path())
    if folder is None:
        raise DataNotFoundError(
            f"no data folder is set for {name!r}: {data.download}, and set the environment "
            f"variable {ROOT_VARIABLE} to the folder that holds it"
        )
    try:
        return data.read(Path(folder))
    except DataNotFoundError as error:
        where = "the folder given as root" if root is not None else f"${ROOT_VARIABLE}"
        raise DataNotFoundError(
            f"{error}; to get {name!r}, {data.download} inside {where}, {folder}"
        ) from error
