"""The recipes and sweeps that come with TensorPress, by name."""

import os
from importlib import resources
from pathlib import Path
from typing import Literal

from tensorpress.errors import unknown_name
from tensorpress.utils.paths import is_file

Kind = Literal["recipe", "sweep"]


def list_library(kind: Kind) -> dict[str, Path]:
    """Return all recipes or all sweeps by name, from the package or its checkout.

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
    """Return the path of a recipe or sweep by its name; a path is returned unchanged.

    Whatever ends with ``.yaml`` or ``.yml``, has a folder, or is an existing file counts as a path.

    Raises
    ------
    InvalidArgumentError
        If there is no such name; the message suggests similar ones.

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
