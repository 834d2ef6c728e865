"""Datasets of Hugging Face's library, saved in a folder or as Parquet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tensorpress.data.source import Example, Source
from tensorpress.data.texts import LABEL, text_key
from tensorpress.errors import CorruptFileError, InvalidArgumentError
from tensorpress.models.optional_imports import require
from tensorpress.models.torchvision import mend_torchvision

PURPOSE = "a saved dataset"
SAVED_FILES = ("dataset_info.json", "dataset_dict.json")
"""Files by which a folder written by ``save_to_disk`` is recognized."""


class Rows:
    """The rows of a dataset as examples.

    Parameters
    ----------
    source : str
        The name of the source, for messages.
    rows : datasets.Dataset
        The dataset.
    content : str or None
        The column of images, texts or inputs; None if the columns are arguments by name.
    label : str or None
        The column of labels.
    names : tuple of str
        The class names, if the column of labels has names.
    """

    def __init__(
        self,
        source: str,
        rows: Any,
        content: str | None,
        label: str | None,
        names: tuple[str, ...] = (),
    ) -> None:
        self._source, self._rows, self._content, self._label = source, rows, content, label
        self._numbers = {name: number for number, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Example:
        try:
            row = self._rows[index]
        except IndexError:
            raise
        except Exception as error:  # of the library, as for a damaged image
            raise CorruptFileError(
                f"{self._source}: row {index + 1} cannot be read: {error}"
            ) from error
        label = None if self._label is None else row.pop(self._label)
        label = self._numbers[label] if isinstance(label, str) else label
        if self._content is None:
            return {key: torch.as_tensor(value) for key, value in row.items()}, label
        content = row[self._content]
        if content is None:
            raise InvalidArgumentError(f"{self._source}: row {index + 1} has no {self._content!r}")
        if not isinstance(content, str) and not hasattr(content, "convert"):
            content = torch.as_tensor(content)
        return content, label


def read_saved_dataset(folder: Path) -> Source:
    """Return a dataset, or a dictionary of datasets, written by `datasets.Dataset.save_to_disk`.

    Raises
    ------
    CorruptFileError
        If it cannot be loaded.
    TensorPressError
        If datasets is not installed.
    """
    mend_torchvision()
    datasets = require("datasets", PURPOSE)
    try:
        content = datasets.load_from_disk(folder)
    except Exception as error:  # of the library
        raise CorruptFileError(f"{folder} cannot be read by datasets: {error}") from error
    return source_of_dataset(str(folder), content)


def read_parquet(path: Path) -> Source:
    """Return the rows of a Parquet file, or of all in a folder, whose names begin with the part.

    Raises
    ------
    CorruptFileError
        If a file cannot be read.
    TensorPressError
        If datasets is not installed.
    """
    mend_torchvision()
    datasets = require("datasets", PURPOSE)
    parquet = require("pyarrow.parquet", PURPOSE)
    files: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*.parquet")) if path.is_dir() else [path]:
        # Files of the hub have names such as train-00000-of-00002.parquet.
        files.setdefault(file.stem.partition("-")[0], []).append(file)
    try:
        parts = {
            name: datasets.concatenate_datasets(
                [datasets.Dataset(parquet.read_table(file)) for file in group]
            )
            for name, group in files.items()
        }
    except Exception as error:  # of the library
        raise CorruptFileError(f"{path} cannot be read as Parquet: {error}") from error
    return source_of_dataset(str(path), parts)


def source_of_dataset(name: str, content: Any) -> Source:
    """Return a `datasets.Dataset`, or a mapping from parts to datasets, as a source."""
    parts = content if isinstance(content, Mapping) else {"test": content}
    first = next(iter(parts.values()))
    features = first.features
    target = next((key for key in LABEL if key in features), None)
    column = _content_column(name, features, target)
    kind = getattr(features.get(target), "dtype", None) or ""
    # Targets that are not classes, as in regression, are left out.
    label = target if kind.startswith(("int", "uint", "string")) else None
    names = getattr(features.get(label), "names", None) or ()
    stored = ()
    if kind == "string":
        stored = tuple(
            sorted({text for rows in parts.values() for text in rows.unique(label)} - {None})
        )
        names = stored
    return Source.from_parts(
        name,
        {part: Rows(name, rows, column, label, stored) for part, rows in parts.items()},
        # If all names are numbers, such as "7", they are the labels, as with names of folders.
        () if all(text.isdecimal() for text in names) else tuple(names),
    )


def _content_column(name: str, features: Mapping[str, Any], label: str | None) -> str | None:
    """Return the column of images or texts, or the only one; None for tokens."""
    if "input_ids" in features:
        return None
    kinds = {key: type(feature).__name__ for key, feature in features.items() if key != label}
    images = [key for key, kind in kinds.items() if kind == "Image"]
    if images:
        return images[0]
    if len(kinds) == 1:
        return next(iter(kinds))
    texts = [key for key in kinds if getattr(features[key], "dtype", None) == "string"]
    return text_key(name, texts)
