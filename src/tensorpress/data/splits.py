"""Data at the input size of a network of the zoo, in memory, and its files of trained weights."""

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
        A network. One that is not in the zoo gets grey images as three equal colours where it takes
        colours.
    name : str
        A data set, as for `tensorpress.data.load`, or another source of labelled images, as for
        `tensorpress.data.open_source`. Of a source without parts, a fifth is for tests.
    root : path, optional
        The data folder.
    validation : int
        The number of training images to set aside for validation.

    Raises
    ------
    InvalidArgumentError
        If the images have another number of channels or of dimensions than the inputs of the
        network, more classes than it has outputs, or no labels, or are no images.
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
    """Return the shape of the images of a data set or another source, and its number of classes.

    Images of a source may have several shapes: it is that of the first.

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
    """Return whether a network takes the images of a data set in `DATASETS`."""
    data = DATASETS[name]
    repeated = data.shape[0] == 1 and net.name not in NETWORKS and len(net.input_shape) == 3
    return (
        len(data.shape) == len(net.input_shape)
        and (data.shape[0] == net.input_shape[0] or repeated)
        and data.classes <= net.classes
    )


def _repeat_channels(splits: Splits, channels: int) -> Splits:
    """Return grey images as so many equal channels, and others as they are."""
    if splits.test.images.shape[1] == channels:
        return splits
    train, validation, test = (
        ImageSet(part.images.expand(-1, channels, -1, -1), part.labels)
        for part in (splits.train, splits.validation, splits.test)
    )
    return Splits(train, validation, test)


def check_fit(net: Network, name: str) -> None:
    """Check that a network takes the images of a data set in `DATASETS`.

    Raises
    ------
    InvalidArgumentError
        If it takes others, or has fewer outputs than the data set has classes.
    """
    if not fits(net, name):
        data = DATASETS[name]
        raise InvalidArgumentError(
            f"the data set {name!r} ({format_shape(data.shape)}, classes: {data.classes}) does not "
            f"fit {net.name} ({format_shape(net.input_shape)}, classes: {net.classes})"
        )


def _read_images(source: Source, part: Part, net: Network) -> ImageSet:
    """Return labelled images in memory, at the input size of a network."""
    expected = "expected labelled images, of Pillow or as uint8 pixels of shape (C, H, W)"
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
            f"{source.name} has labels from {min(labels)} to {max(labels)}, and {net.name} "
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
        The data folder; by default the one that the environment variable names.
    otherwise : str
        Text for the error message on what to do without a file.

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
