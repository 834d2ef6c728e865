"""The recipes and sweeps that come with TensorPress, by the names of their files."""

import os
from importlib import resources
from pathlib import Path
from typing import Literal

from tensorpress.errors import unknown_name
from tensorpress.utils.paths import is_file

Kind = Literal["recipe", "sweep"]


def list_library(kind: Kind) -> dict[str, Path]:
    """Return the files of a kind by name, from the package or from its checkout.

    Examples
    --------
    >>> list_library("recipe")["lenet5-ada"].parts[-2:]
    ('mnist', 'lenet5-ada.yaml')
    """
    package = Path(str(resources.files("tensorpress")))
    inside, checkout = (place / f"{kind}s" for place in (package, package.parents[1]))
    folder = inside if inside.is_dir() else checkout
    return {path.stem: path for path in sorted(folder.glob("**/*.yaml"))}


def find_in_library(kind: Kind, name: str | os.PathLike[str]) -> Path:
    """Return the path of the recipe or sweep of a name, or a path as it is.

    A name that ends with ``.yaml`` or ``.yml``, has a folder, or is an existing file is a path.

    Raises
    ------
    InvalidArgumentError
        If no file has this name; the message has the nearest names.

    Examples
    --------
    >>> find_in_library("recipe", "my/recipe.yaml").as_posix()
    'my/recipe.yaml'
    >>> find_in_library("sweep", "resnet20-forms").name
    'resnet20-forms.yaml'
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1 or is_file(path):
        return path
    files = list_library(kind)
    if str(name) not in files:
        raise unknown_name(kind, str(name), files)
    return files[str(name)]
