"""The datasets that can be loaded by name, and where their files are."""

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
    """A dataset for `load`.

    Parameters
    ----------
    name : str
        The name for `load`.
    description : str
        One line of text.
    shape : tuple of int
        Channels, height and width of the images; for clips, the number of frames comes second.
    classes : int
        The number of classes.
    read : callable
        Function of the data folder that reads the official training and test images.
    download : str or None
        Instructions to get the files, or None if none are needed.
    group : int
        Number of consecutive training images that were made from one original, and therefore stay
        together when validation images are set aside.

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
        "1,797 handwritten digits from UCI, included in the package; every third is a test image",
        shape=(1, 8, 8),
        classes=10,
        read=lambda root: read_digits(),
        download=None,
    ),
    DataSet(
        "moving-digits",
        "7,188 generated clips of these digits; classes are digit and direction, left or right",
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
        "60,000 + 10,000 pictures of clothing in MNIST's format",
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
"""The datasets by name. `load` also takes the name of any other folder in MNIST's format."""


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    validation: int = 0,
    size: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Splits:
    """Load a dataset into memory.

    Parameters
    ----------
    name : str
        A name in `DATASETS`, or the name of a folder in ``root`` with the four files of MNIST.
    root : path, optional
        The folder of all datasets; by default that in the environment variable
        ``TENSORPRESS_DATA``. "digits" and "moving-digits" need none.
    validation : int
        Number of training images to set aside for validation. For "moving-digits" it must be a
        multiple of 4, because the clips of a digit stay together.
    size : tuple of int, optional
        Height and width in pixels to resize the images to. Clips cannot be resized.
    seed : int
        Seed of the choice of validation images.

    Returns
    -------
    Splits
        Training and validation images in their official order, and the official test images.

    Raises
    ------
    InvalidArgumentError
        If the name is unknown, the images cannot be resized, or ``validation`` is negative, leaves
        no training images or separates clips of a digit.
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
    """Set aside some training images for validation.

    Parameters
    ----------
    name : str
        The name of the data, for messages.
    train, test : ImageSet
        The images.
    validation : int
        Number of validation images, drawn at random from the training images.
    group : int
        Number of consecutive training images that stay together.
    seed : int
        Seed of the choice of validation images.

    Raises
    ------
    InvalidArgumentError
        If ``validation`` is negative, leaves no training images or separates a group.
    """
    if not 0 <= validation < len(train):
        raise InvalidArgumentError(
            f"validation must be from 0 to {len(train) - 1}, as {name!r} has {len(train)} training "
            f"images, got {validation}"
        )
    if validation % group:
        raise InvalidArgumentError(
            f"validation must be a multiple of {group}, the number of images made from one "
            f"original of {name!r}, got {validation}"
        )
    order = _shuffle_groups(len(train), group, seed)
    return Splits(
        train=train.subset(order[validation:].sort().values),
        validation=train.subset(order[:validation].sort().values),
        test=test,
    )


def _shuffle_groups(count: int, group: int, seed: int) -> torch.Tensor:
    """Return the numbers below ``count`` in random order, with groups kept together."""
    groups = torch.randperm(count // group, generator=torch.Generator().manual_seed(seed))
    return (groups[:, None] * group + torch.arange(group)).flatten()


def _read_parts(name: str, root: str | os.PathLike[str] | None) -> tuple[ImageSet, ImageSet]:
    data = DATASETS.get(name)
    folder = root if root is not None else os.environ.get(ROOT_VARIABLE) or None
    if data is None:
        other = Path(folder, name) if folder is not None and Path(name).name == name else None
        if other is None or find_idx(other) is None:
            raise unknown_name("dataset", name, DATASETS)
        return read_mnist(other)
    if data.download is None:
        return data.read(Path())
    if folder is None:
        raise DataNotFoundError(
            f"no data folder is set for {name!r}: {data.download}, and set the environment "
            f"variable {ROOT_VARIABLE} to the folder that contains it"
        )
    try:
        return data.read(Path(folder))
    except DataNotFoundError as error:
        where = "the folder passed as root" if root is not None else f"${ROOT_VARIABLE}"
        raise DataNotFoundError(
            f"{error}; to get {name!r}, {data.download} inside {where}, {folder}"
        ) from error
