"""Data sets at the input size of a network of the zoo, and its files of trained weights."""

import os
from pathlib import Path

from tensorpress.data import DATASETS, ROOT_VARIABLE, ImageSet, Splits, load
from tensorpress.errors import DataNotFoundError, InvalidArgumentError
from tensorpress.models.zoo import NETWORKS, Network
from tensorpress.utils.formatting import format_shape


def load_splits(
    net: Network, name: str, root: str | os.PathLike[str] | None = None, validation: int = 0
) -> Splits:
    """Return a data set at the input size of a network.

    Parameters
    ----------
    net : Network
        A network. One that is not in the zoo gets grey images as three equal colours where it takes
        colours.
    name, root, validation
        The arguments of `tensorpress.data.load`.

    Raises
    ------
    InvalidArgumentError
        If the images have another number of channels or of dimensions than the inputs of the
        network, or more classes than it has outputs.
    TensorPressError
        If `tensorpress.data.load` raises.

    Examples
    --------
    >>> from tensorpress.models.zoo import network
    >>> load_splits(network("lenet5"), "digits").test.images.shape
    torch.Size([596, 1, 28, 28])
    """
    data = DATASETS.get(name)
    repeat = net.name not in NETWORKS and len(net.input_shape) == 3  # grey as equal colours
    if data is not None and (
        len(data.shape) != len(net.input_shape)
        or not (data.shape[0] == net.input_shape[0] or (repeat and data.shape[0] == 1))
        or data.classes > net.classes
    ):
        raise InvalidArgumentError(
            f"the data set {name!r} ({format_shape(data.shape)}, classes: {data.classes}) does not "
            f"fit {net.name} ({format_shape(net.input_shape)}, classes: {net.classes})"
        )
    splits = load(name, root, validation=validation, size=net.input_shape[1:])
    if not repeat or splits.test.images.shape[1] != 1:
        return splits
    train, validating, test = (
        ImageSet(part.images.expand(-1, net.input_shape[0], -1, -1), part.labels)
        for part in (splits.train, splits.validation, splits.test)
    )
    return Splits(train, validating, test)


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
