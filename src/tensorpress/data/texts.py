"""Texts in files: a line each, or JSON lines with labels."""

from pathlib import Path
from typing import Any

from tensorpress.data.source import Source
from tensorpress.errors import CorruptFileError, DataNotFoundError, InvalidArgumentError
from tensorpress.utils.config_parsing import parse_json

TEXT = ("text", "sentence", "content")
"""The names of texts in JSON lines and of columns."""

LABEL = ("label", "labels", "fine_label", "target", "y")
"""The names of labels likewise."""


def read_text(path: Path) -> Source:
    """Return the lines of a text file, each with its line break, without labels.

    Raises
    ------
    DataNotFoundError
        If the file is empty.
    CorruptFileError
        If it is not UTF-8.
    """
    lines = [(line, None) for line in _read(path).splitlines(keepends=True)]
    if not lines:
        raise DataNotFoundError(f"{path} holds no text")
    return Source(str(path), lines)


def read_json_lines(path: Path) -> Source:
    """Return texts and labels of a file with a JSON object a line.

    The text is under ``text``, ``sentence`` or ``content``, or is the only one; the label, if
    there is one, under ``label``: a number, or a name of its class.

    Raises
    ------
    CorruptFileError
        If a line is no JSON object.
    InvalidArgumentError
        If an object has no such text.
    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except InvalidArgumentError as error:
            raise CorruptFileError(f"{path}, line {number}: {error}") from error
        if not isinstance(row, dict):
            raise CorruptFileError(f"{path}, line {number}: expected a JSON object")
        rows.append(row)
    if not rows:
        raise DataNotFoundError(f"{path} holds no JSON lines")
    text = text_key(str(path), [key for key, value in rows[0].items() if isinstance(value, str)])
    key = next((name for name in LABEL if name in rows[0]), None)
    try:
        labels = [None if key is None else row[key] for row in rows]
        texts = [str(row[text]) for row in rows]
    except KeyError as error:
        raise InvalidArgumentError(f"{path}: a line has no {error}") from None
    classes = tuple(sorted({label for label in labels if isinstance(label, str)}))
    numbers = [classes.index(x) if isinstance(x, str) else x for x in labels]
    return Source(str(path), list(zip(texts, numbers, strict=True)), classes=classes)


def text_key(source: str, names: list[str]) -> str:
    """Return which of the names is that of the text.

    Raises
    ------
    InvalidArgumentError
        If none or several may be.
    """
    key = next((name for name in TEXT if name in names), None)
    if key is None:
        names = [name for name in names if name not in LABEL]
        if len(names) != 1:
            raise InvalidArgumentError(
                f"{source} has no text: expected it under {TEXT[0]}, not "
                f"{', '.join(names) or 'nothing'}"
            )
        [key] = names
    return key


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} is not UTF-8 text: {error}") from error
