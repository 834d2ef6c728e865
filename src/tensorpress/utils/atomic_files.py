"""Atomic writes: a file is complete or not there at all."""

import glob
import os
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tensorpress.errors import InvalidArgumentError


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path whose file replaces ``path`` at the end of the block.

    The file is flushed to disk before it is renamed. If the block raises, the temporary file is
    removed and ``path`` is unchanged.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with replace_file(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> [file.name for file in folder.iterdir()]
    ['a.txt']
    """
    target = Path(path)
    writer = f"{platform.node()}@{os.getpid()}"
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.{writer}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        reason = error.strerror or error
        raise InvalidArgumentError(f"{target} cannot be written: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove the temporary files of `replace_file` for a path whose processes were killed.

    The name of a temporary file has the machine and the process that writes it. A file of another
    machine stays, because nothing here tells whether its process still runs.
    """
    target = Path(path)
    writer = f"{glob.escape(f'.{target.name}.')}????????.{glob.escape(platform.node())}"
    for leftover in target.parent.glob(f"{writer}@*.tmp"):
        pid = leftover.stem.rpartition("@")[2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            leftover.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write bytes to a file, which then exists complete or unchanged."""
    with replace_file(path) as temporary:
        temporary.write_bytes(data)
