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
from tensorpress.models.zoo import Network
from tensorpress.utils.formatting import format_shape


def load_splits(
    net: Network, name: str, root: str | os.PathLike[str] | None = None, validation: int = 0
) -> Splits:
    """Return images at the input size of a network.

    Parameters
    ----------
    net : Network
        A network of the zoo.
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
        return load(name, root, validation=validation, size=net.input_shape[1:])
    source = open_source(name, root)
    train, test = (_read_images(source, part, net) for part in source.divide())
    return set_aside(name, train, test, validation)


def fits(net: Network, name: str) -> bool:
    """Return whether a network of the zoo takes the images of a data set in `DATASETS`."""
    data = DATASETS[name]
    kind = len(data.shape), data.shape[0]
    return kind == (len(net.input_shape), net.input_shape[0]) and data.classes <= net.classes


def check_fit(net: Network, name: str) -> None:
    """Check that a network of the zoo takes the images of a data set in `DATASETS`.

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
