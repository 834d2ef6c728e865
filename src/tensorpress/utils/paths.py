"""Paths from users: existence, kinds of files, and similar names."""

import os
import stat
from contextlib import suppress
from difflib import get_close_matches
from io import StringIO
from pathlib import Path

from tensorpress.errors import CorruptFileError, DataNotFoundError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def exists(path: str | os.PathLike[str]) -> bool:
    r"""Return whether a file or folder with this name exists.

    Examples
    --------
    >>> exists("/"), exists("x" * 300), exists("a\0b")
    (True, False, False)
    """
    with suppress(OSError, ValueError):  # the name is too long, or has a NUL
        return Path(path).exists()
    return False


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a regular file with this name exists, not a pipe or a device.

    Examples
    --------
    >>> is_file(__file__), is_file("/"), is_file("x" * 300)
    (True, False, False)
    """
    return exists(path) and Path(path).is_file()


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder with this name exists.

    Examples
    --------
    >>> is_folder("/"), is_folder(__file__), is_folder("x" * 300)
    (True, False, False)
    """
    return exists(path) and Path(path).is_dir()


def check_file(path: str | os.PathLike[str], what: str = "file") -> Path:
    """Check that a path is a regular file, not a pipe or a device, and return it.

    Raises
    ------
    DataNotFoundError
        If there is no such file, or it is of another kind. The message suggests similar names and
        names `what` was expected.

    Examples
    --------
    >>> check_file("/dev/null", "plan")
    Traceback (most recent call last):
    tensorpress.errors.DataNotFoundError: /dev/null is a device: expected a plan in a file
    """
    file = Path(path)
    try:
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DataNotFoundError(f"no {what} at {file}{did_you_mean(file)}") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise unreadable(file, error) from None
    if not stat.S_ISREG(mode):
        inside = "" if "file" in what else " in a file"
        raise DataNotFoundError(f"{file} is {kind_of_file(mode)}: expected a {what}{inside}")
    return file


def read_file(path: str | os.PathLike[str], what: str = "file") -> bytes:
    """Return the bytes of a file, checked by `check_file`.

    Examples
    --------
    >>> read_file(__file__)[:15]
    b'\"\"\"Paths from u'
    """
    file = check_file(path, what)
    try:
        return file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from None


def read_text_file(path: str | os.PathLike[str], what: str = "file") -> str:
    """Return the text of a UTF-8 file, with newlines as line ends.

    Raises
    ------
    DataNotFoundError
        See `check_file`.
    CorruptFileError
        If the file is not UTF-8.
    """
    try:
        text = read_file(path, what).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} is not UTF-8 text: {error}") from error
    return StringIO(text, newline=None).getvalue()


def unreadable(path: Path, error: Exception) -> DataNotFoundError:
    """Return the error for a file that the operating system cannot read."""
    name = str(path) if "\0" not in str(path) else repr(str(path))
    return DataNotFoundError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}")


def kind_of_file(mode: int) -> str:
    """Return the kind of an irregular file by its mode."""
    return next((kind for holds, kind in _KINDS if holds(mode)), "a loop of links")


def near_paths(path: str | os.PathLike[str]) -> list[str]:
    """Return the paths in the same folder with similar names, the most similar first.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (Path(folder) / "photos").mkdir()
    ...     [Path(near).name for near in near_paths(f"{folder}/fotos")]
    ['photos']
    """
    folder = Path(path).parent
    try:
        names = [entry.name for entry in folder.iterdir() if entry.name != Path(path).name]
    except (OSError, ValueError):
        return []
    return [str(folder / name) for name in get_close_matches(Path(path).name, names, n=3)]


def did_you_mean(path: str | os.PathLike[str]) -> str:
    """Return the end of a message about a missing path: similar paths, or nothing."""
    near = near_paths(path)
    return f"; did you mean {' or '.join(near)}?" if near else ""
