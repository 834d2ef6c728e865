"""Data at the input size of a network, in memory, and files of trained weights."""

import os
from pathlib import Path

import torch

from tensorpress.data.images import ImageSet, Splits
from tensorpress.data.registry import DATASETS, ROOT_VARIABLE, load, set_aside
from tensorpress.data.source import Batches, Part, Source
from tensorpress.data.sources import open_source
from tensorpress.data.transforms import describe_content, fit_pixels, is_image, to_pixels
from tensorpress.errors import DataNotFoundError, InvalidArgumentError
from tensorpress.models.zoo import NETWORKS, Network
from tensorpress.utils.formatting import format_shape


def load_splits(
    net: Network, name: str, root: str | os.PathLike[str] | None = None, validation: int = 0
) -> Splits:
    """Return images at the input size of a network.

    Parameters
    ----------
    net : Network
        A network. If it is not in the zoo and takes colour images, grey images are repeated as
        three equal channels.
    name : str
        A dataset, as in `tensorpress.data.load`, or another source of labelled images, as in
        `tensorpress.data.open_source`. A fifth of a source without parts is reserved for tests.
    root : path, optional
        The data folder.
    validation : int
        Number of training images to set aside for validation.

    Raises
    ------
    InvalidArgumentError
        If the data are not labelled images, channels or dimensions do not match the network, or
        there are more classes than outputs.
    TensorPressError
        If the data cannot be read.

    Examples
    --------
    >>> from tensorpress.models.zoo import network
    >>> load_splits(network("lenet5"), "digits").test.images.shape
    torch.Size([596, 1, 28, 28])
    """
    if name in DATASETS:
        check_fit(net, name)
        splits = load(name, root, validation=validation, size=net.input_shape[1:])
        return _repeat_channels(splits, net.input_shape[0])
    source = open_source(name, root)
    train, test = (_read_images(source, part, net) for part in source.divide())
    return set_aside(name, train, test, validation)


def describe_images(
    name: str, root: str | os.PathLike[str] | None = None
) -> tuple[tuple[int, ...], int]:
    """Return the image shape and number of classes of a dataset or another source.

    If images have several shapes, it is that of the first.

    Raises
    ------
    InvalidArgumentError
        If the source has no labelled images.
    TensorPressError
        If the data cannot be read.

    Examples
    --------
    >>> describe_images("cifar10")
    ((3, 32, 32), 10)
    """
    if name in DATASETS:
        return DATASETS[name].shape, DATASETS[name].classes
    source = open_source(name, root)
    part, _ = source.divide()
    if isinstance(part, Batches) or not len(part) or not is_image(part[0][0]):
        raise InvalidArgumentError(f"{source.name} has no labelled images")
    first = part[0][0]
    grey = first.shape[0] == 1 if isinstance(first, torch.Tensor) else first.mode in ("1", "L")
    shape = tuple(to_pixels(first, 1 if grey else 3).shape)
    labels = [] if source.classes else [part[index][1] for index in range(len(part))]
    if None in labels:
        raise InvalidArgumentError(f"{source.name} has images without labels")
    return shape, len(source.classes) or max(label + 1 for label in labels if label is not None)


def fits(net: Network, name: str) -> bool:
    """Return whether the images of a dataset in `DATASETS` fit a network."""
    data = DATASETS[name]
    repeated = data.shape[0] == 1 and net.name not in NETWORKS and len(net.input_shape) == 3
    return (
        len(data.shape) == len(net.input_shape)
        and (data.shape[0] == net.input_shape[0] or repeated)
        and data.classes <= net.classes
    )


def _repeat_channels(splits: Splits, channels: int) -> Splits:
    """Repeat grey images in several equal channels; others do not change."""
    if splits.test.images.shape[1] == channels:
        return splits
    train, validation, test = (
        ImageSet(part.images.expand(-1, channels, -1, -1), part.labels)
        for part in (splits.train, splits.validation, splits.test)
    )
    return Splits(train, validation, test)


def check_fit(net: Network, name: str) -> None:
    """Check that the images of a dataset in `DATASETS` fit a network.

    Raises
    ------
    InvalidArgumentError
        If shapes do not match, or the network has fewer outputs than the dataset has classes.
    """
    if not fits(net, name):
        data = DATASETS[name]
        raise InvalidArgumentError(
            f"the dataset {name!r} ({format_shape(data.shape)}, classes: {data.classes}) does not "
            f"fit {net.name} ({format_shape(net.input_shape)}, classes: {net.classes})"
        )


def _read_images(source: Source, part: Part, net: Network) -> ImageSet:
    """Read labelled images into memory, at the input size of a network."""
    expected = "expected labelled images from Pillow or as uint8 pixels of shape (C, H, W)"
    if isinstance(part, Batches):
        raise InvalidArgumentError(f"{source.name} yields batches: {expected}")
    if not len(part):
        raise InvalidArgumentError(f"{source.name} has no images in one of its parts")
    images, labels = [], []
    for index in range(len(part)):
        content, label = part[index]
        if not is_image(content) or label is None:
            kind = describe_content(content)
            raise InvalidArgumentError(
                f"{source.name} yields {kind} with label {label}: {expected}"
            )
        pixels = to_pixels(content, net.input_shape[0])
        images.append(fit_pixels(pixels, net.input_shape[1:]))
        labels.append(label)
    if not 0 <= min(labels) <= max(labels) < net.classes:
        raise InvalidArgumentError(
            f"{source.name} has labels from {min(labels)} to {max(labels)}, but {net.name} has "
            f"{net.classes} outputs"
        )
    return ImageSet(torch.stack(images), torch.tensor(labels))


def find_weights(path: Path, root: Path | None, otherwise: str = "") -> Path:
    """Return the path of a weight file, which may be relative to the data folder.

    Parameters
    ----------
    path : Path
        The path in a recipe.
    root : Path, optional
        The data folder; by default that in the environment variable ``TENSORPRESS_DATA``.
    otherwise : str
        Text for the error message, on what to do without a file.

    Raises
    ------
    DataNotFoundError
        If the file is in neither place; the message names both.
    """
    folder = root or os.environ.get(ROOT_VARIABLE)
    places = [path, *([Path(folder, path)] if folder else [])]
    for place in places:
        if place.is_file():
            return place
    searched = " or ".join(str(place.resolve()) for place in places)
    hint = "" if folder else f"; set the environment variable {ROOT_VARIABLE} to the data folder"
    raise DataNotFoundError(
        f"no weight file at {searched}: put a safetensors file of the trained network there"
        f"{otherwise}{hint}"
    )
