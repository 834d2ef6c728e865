"""Paths that are not there, and what may have been meant."""

import os
from difflib import get_close_matches
from pathlib import Path


def near_paths(path: str | os.PathLike[str]) -> list[str]:
    """Return the paths in the folder of a path whose names are nearly its name, the nearest first.

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
    """Return the end of a message on a path that is not there: the near paths, or nothing."""
    near = near_paths(path)
    return f"; did you mean {' or '.join(near)}?" if near else ""
