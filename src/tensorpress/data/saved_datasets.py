"""Data sets of Hugging Face's library, saved to a folder or as Parquet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tensorpress.data.source import Example, Source
from tensorpress.data.texts import LABEL, text_key
from tensorpress.errors import CorruptFileError, InvalidArgumentError
from tensorpress.models.optional_imports import require
from tensorpress.models.torchvision import mend_torchvision

PURPOSE = "a saved data set"
SAVED_FILES = ("dataset_info.json", "dataset_dict.json")
"""The files of which a folder that ``save_to_disk`` wrote has one."""


class Rows:
    """The rows of a data set as examples.

    Parameters
    ----------
    source : str
        The name of the source, for messages.
    rows : datasets.Dataset
        The data set.
    content : str or None
        The column of images, texts or inputs; None for several columns of arguments by name.
    label : str or None
        The column of labels.
    names : tuple of str
        The classes, where the column has their names.
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
        except Exception as error:  # of the libraries below, as for a damaged image
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
    """Return a data set that `datasets.Dataset.save_to_disk` wrote, or a dictionary of them.

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
    except Exception as error:  # of the libraries below
        raise CorruptFileError(f"{folder} cannot be read by datasets: {error}") from error
    return source_of_dataset(str(folder), content)


def read_parquet(path: Path) -> Source:
    """Return the rows of a Parquet file; of a folder those of all its files, the part in the name.

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
        # Files of the hub are named as train-00000-of-00002.parquet.
        files.setdefault(file.stem.partition("-")[0], []).append(file)
    try:
        parts = {
            name: datasets.concatenate_datasets(
                [datasets.Dataset(parquet.read_table(file)) for file in group]
            )
            for name, group in files.items()
        }
    except Exception as error:  # of the libraries below
        raise CorruptFileError(f"{path} cannot be read as Parquet: {error}") from error
    return source_of_dataset(str(path), parts)


def source_of_dataset(name: str, content: Any) -> Source:
    """Return a `datasets.Dataset`, or a mapping of parts to such, as a source."""
    parts = content if isinstance(content, Mapping) else {"test": content}
    first = next(iter(parts.values()))
    features = first.features
    target = next((key for key in LABEL if key in features), None)
    column = _content_column(name, features, target)
    kind = getattr(features.get(target), "dtype", None) or ""
    # What is no class, such as the target of a regression, is left out.
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
        # Names such as "7" say that labels are numbers, as names of folders do.
        () if all(text.isdecimal() for text in names) else tuple(names),
    )


def _content_column(name: str, features: Mapping[str, Any], label: str | None) -> str | None:
    """Return the column of images, the one of texts, the only one, or None for tokens."""
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
