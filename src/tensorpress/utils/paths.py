"""Questions about paths with any name, also one that no file can have."""

import os
from contextlib import suppress
from pathlib import Path


def exists(path: str | os.PathLike[str]) -> bool:
    r"""Return whether there is a file or a folder of this name.

    Examples
    --------
    >>> exists("/"), exists("x" * 300), exists("a\0b")
    (True, False, False)
    """
    with suppress(OSError, ValueError):  # a name that is too long, or has a NUL
        return Path(path).exists()
    return False


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a file of this name.

    Examples
    --------
    >>> is_file(__file__), is_file("/"), is_file("x" * 300)
    (True, False, False)
    """
    return exists(path) and Path(path).is_file()
