"""What a run starts from: images at the size of its network, and trained weights."""

import os
from pathlib import Path

from tensorpress.data import DATASETS, ROOT_VARIABLE, Splits, load
from tensorpress.errors import DataNotFoundError, InvalidArgumentError
from tensorpress.models.zoo import Network
from tensorpress.utils.formatting import format_shape


def load_splits(
    net: Network, name: str, root: str | os.PathLike[str] | None = None, validation: int = 0
) -> Splits:
    """Return a data set at the size a network takes.

    Parameters
    ----------
    net : Network
        Of the zoo.
    name, root, validation
        As for `tensorpress.data.load`.

    Raises
    ------
    InvalidArgumentError
        If the images have other channels than the network's, clips are given for images, or there
        are classes it does not know.
    TensorPressError
        As `tensorpress.data.load` does.

    Examples
    --------
    >>> from tensorpress.models.zoo import network
    >>> load_splits(network("lenet5"), "digits").test.images.shape
    torch.Size([596, 1, 28, 28])
    """
    data = DATASETS.get(name)
    if data is not None and (
        len(data.shape) != len(net.input_shape)
        or data.shape[0] != net.input_shape[0]
        or data.classes > net.classes
    ):
        raise InvalidArgumentError(
            f"the data set {name!r} ({format_shape(data.shape)}, classes: {data.classes}) does not "
            f"fit {net.name} ({format_shape(net.input_shape)}, classes: {net.classes})"
        )
    return load(name, root, validation=validation, size=net.input_shape[1:])


def find_weights(path: Path, root: Path | None, otherwise: str = "") -> Path:
    """Return a weight file named by a recipe: a path, or one inside the data folder.

    ``otherwise`` says in the error what can be done without a file.

    Raises
    ------
    DataNotFoundError
        If it is in neither place; the message names both.
    """
    folder = root or os.environ.get(ROOT_VARIABLE)
    places = [path, *([Path(folder, path)] if folder else [])]
    for place in places:
        if place.is_file():
            return place
    looked = " or ".join(str(place.resolve()) for place in places)
    hint = "" if folder else f"; set the environment variable {ROOT_VARIABLE} to the data folder"
    raise DataNotFoundError(
        f"no weight file at {looked}: put a safetensors file of the trained network there"
        f"{otherwise}{hint}"
    )
