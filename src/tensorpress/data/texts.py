"""Texts in files: one per line, or JSON lines with labels."""

import json
from pathlib import Path
from typing import Any

from tensorpress.data.source import Source
from tensorpress.errors import CorruptFileError, DataNotFoundError, InvalidArgumentError
from tensorpress.utils.config_parsing import parse_json
from tensorpress.utils.paths import read_text_file

TEXT = ("text", "sentence", "content")
"""Names of the text in JSON lines and columns."""

LABEL = ("label", "labels", "fine_label", "target", "y")
"""Names of the label in JSON lines and columns."""


def read_text(path: Path) -> Source:
    """Return the lines of a text file, with their line breaks and without labels.

    Raises
    ------
    DataNotFoundError
        If the file is empty.
    CorruptFileError
        If it is not UTF-8.
    """
    lines = [(line, None) for line in read_text_file(path).splitlines(keepends=True)]
    if not lines:
        raise DataNotFoundError(f"{path} has no text")
    return Source(str(path), lines)


def read_json_lines(path: Path) -> Source:
    """Return texts and labels of a file with one JSON object per line.

    The text is under ``text``, ``sentence`` or ``content``, or is the only string. The label, if
    any, is under ``label`` and is a class number or name.

    Raises
    ------
    CorruptFileError
        If a line is not a JSON object.
    InvalidArgumentError
        If an object has no text or an invalid label; the message names the line.
    """
    rows = _json_objects(path)
    if not rows:
        raise DataNotFoundError(f"{path} has no JSON lines")
    first = next(iter(rows.values()))
    names = [key for key, value in first.items() if isinstance(value, str) or key in TEXT]
    text = text_key(str(path), names)
    key = next((name for name in LABEL if name in first), None)
    for place, row in rows.items():
        if not isinstance(row.get(text), str):
            raise InvalidArgumentError(f"{place} has no text: expected a string under {text!r}")
        if key is not None and key not in row:
            raise InvalidArgumentError(f"{place} has no {key!r}, expected a label or null")
    labels = {place: None if key is None else row[key] for place, row in rows.items()}
    classes = tuple(sorted({label for label in labels.values() if isinstance(label, str)}))
    for place, label in labels.items():
        _check_label(place, label, named=bool(classes))
    numbers = [classes.index(x) if isinstance(x, str) else x for x in labels.values()]
    if any(isinstance(x, float) and not x.is_integer() for x in numbers):
        numbers = [None] * len(numbers)  # targets of a regression
    numbers = [None if x is None else int(x) for x in numbers]
    texts = [row[text] for row in rows.values()]
    return Source(str(path), list(zip(texts, numbers, strict=True)), classes=classes)


def _json_objects(path: Path) -> dict[str, dict[str, Any]]:
    """Return the objects of a file by file name and line number."""
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(read_text_file(path).splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = parse_json(line)
        except InvalidArgumentError as error:
            raise CorruptFileError(f"{place}: {error}") from error
        if not isinstance(row, dict):
            raise CorruptFileError(f"{place}: expected a JSON object")
        rows[place] = row
    return rows


def _check_label(place: str, label: object, *, named: bool) -> None:
    """Check that a label is a number, a name if other labels are ``named``, or None."""
    is_bool = isinstance(label, bool)
    number = isinstance(label, int | float) and not is_bool and abs(label) < 1 << 63  # int64
    if label is None or isinstance(label, str) or (number and not named):
        return
    expected = "a class name, as in other lines" if named else "a class number or name"
    raise InvalidArgumentError(f"{place} has the label {json.dumps(label)}: expected {expected}")


def text_key(source: str, names: list[str]) -> str:
    """Return the name of the text among several names.

    Raises
    ------
    InvalidArgumentError
        If none or several are possible.
    """
    key = next((name for name in TEXT if name in names), None)
    if key is None:
        names = [name for name in names if name not in LABEL]
        if len(names) != 1:
            raise InvalidArgumentError(
                f"{source}: expected the text under {TEXT[0]}, got {', '.join(names) or 'nothing'}"
            )
        [key] = names
    return key
