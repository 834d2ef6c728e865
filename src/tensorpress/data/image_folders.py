"""Folders of images, with one folder per class, like torchvision's ImageFolder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorpress.data.source import TEST, TRAIN, Example, Part, Source
from tensorpress.errors import CorruptFileError, DataNotFoundError
from tensorpress.models.optional_imports import require
from tensorpress.models.torchvision import mend_torchvision
from tensorpress.utils.paths import check_file

PURPOSE = "a folder of images"
_DIGITS = 18  # of a number in 64 bits


def read_image_folder(folder: Path) -> Source:
    """Return the images of a folder.

    The folder has one folder of images per class, or folders train and test (or val) with such
    folders, or only images, which then have no labels. Labels number the class names in
    alphabetical order; if all names are numbers, they are the labels.

    Raises
    ------
    DataNotFoundError
        If there are no images. Reading a damaged image later raises CorruptFileError.
    TensorPressError
        If torchvision is not installed.
    """
    mend_torchvision()
    torchvision = require("torchvision.datasets", PURPOSE)
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    if names and names <= {*TRAIN, *TEST}:
        parts = {name: _read_classes(torchvision, folder / name) for name in sorted(names)}
        lists = {classes for _, classes in parts.values()}
        if len(lists) > 1:
            raise DataNotFoundError(
                f"{folder}: the folders {', '.join(parts)} do not have the same classes"
            )
        return Source.from_parts(
            str(folder), {name: part for name, (part, _) in parts.items()}, lists.pop()
        )
    part, classes = _read_classes(torchvision, folder)
    return Source(str(folder), part, classes=classes)


def _read_classes(torchvision: Any, folder: Path) -> tuple[Part, tuple[str, ...]]:
    """Return the images of a folder, and the class names unless they are numbers."""
    if not any(path.is_dir() for path in folder.iterdir()):
        return _read_unlabelled(torchvision, folder), ()
    load = _Loader(torchvision.folder.default_loader)
    images = torchvision.ImageFolder(folder, loader=load, allow_empty=True)
    if not len(images):
        raise DataNotFoundError(f"{folder} has no images: expected one folder of images per class")
    if all(name.isdecimal() and len(name) <= _DIGITS for name in images.classes):
        images.target_transform = [int(name) for name in images.classes].__getitem__
        return images, ()
    return images, tuple(images.classes)


def _read_unlabelled(torchvision: Any, folder: Path) -> "UnlabelledImages":
    is_image = torchvision.folder.is_image_file
    files = sorted(path for path in folder.iterdir() if is_image(path.name))
    if not files:
        raise DataNotFoundError(f"{folder} has no images and no folders of images")
    return UnlabelledImages(files, _Loader(torchvision.folder.default_loader))


@dataclass(frozen=True)
class _Loader:
    """A reader of images whose errors name the file."""

    load: Callable[[str], Any]

    def __call__(self, path: str) -> Any:
        try:
            return self.load(str(check_file(path)))
        except Exception as error:  # Pillow raises errors of many classes
            raise CorruptFileError(f"{path} cannot be read as an image: {error}") from error


class UnlabelledImages:
    """Image files without labels."""

    def __init__(self, files: list[Path], load: Callable[[str], Any]) -> None:
        self._files, self._load = files, load

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int, /) -> Example:
        return self._load(str(self._files[index])), None
