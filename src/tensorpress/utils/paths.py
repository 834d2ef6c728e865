"""Paths with any name, even one that no file can have, and similar paths that exist."""

import os
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path


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
    """Return whether a file with this name exists.

    Examples
    --------
    >>> is_file(__file__), is_file("/"), is_file("x" * 300)
    (True, False, False)
    """
    return exists(path) and Path(path).is_file()


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
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        return []
    return [str(folder / name) for name in get_close_matches(Path(path).name, names, n=3)]


def did_you_mean(path: str | os.PathLike[str]) -> str:
    """Return the end of a message about a missing path: similar paths, or nothing."""
    near = near_paths(path)
    return f"; did you mean {' or '.join(near)}?" if near else ""
