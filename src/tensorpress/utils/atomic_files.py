"""Atomic writes: a file is either complete or unchanged."""

import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import psutil

from tensorpress.errors import InvalidArgumentError
from tensorpress.utils.paths import kind_of_file

_LONGEST_NAME = 120  # bytes of a file name that are part of the name of its temporary file


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path whose file replaces ``path`` at the end of the block.

    The file is flushed to disk before it is renamed. If the block raises an error, the temporary
    file is removed and ``path`` is unchanged; if the process is killed, the next one that writes
    the same file removes it. If ``path`` is a symbolic link, the file that it points to is
    replaced. The new file has the permissions of the old one.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be written; see `check_writable`.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with replace_file(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> [file.name for file in folder.iterdir()]
    ['a.txt']
    """
    target = check_writable(path)
    remove_leftovers(target)
    temporary = temporary_path(target)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        put_in_place(temporary, target)
    except OSError as error:
        raise _unwritable(path, error.strerror or error) from error
    finally:
        with suppress(OSError):  # the first error matters
            temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Return the file that a path leads to, through symbolic links, if it can be written.

    Long work should check its output path first.

    Raises
    ------
    InvalidArgumentError
        If the path leads to anything other than a regular file, such as a device, or its folder is
        missing or not writable.

    Examples
    --------
    >>> check_writable("/")
    Traceback (most recent call last):
    tensorpress.errors.InvalidArgumentError: / cannot be written: it is a folder
    """
    try:
        target = real_path(path)
        target.parent.stat()
        with suppress(FileNotFoundError):
            mode = target.lstat().st_mode
            if not stat.S_ISREG(mode):
                raise _unwritable(path, f"it is {kind_of_file(mode)}")
    except OSError as error:
        raise _unwritable(path, error.strerror or error) from error
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise _unwritable(path, "its folder is read-only")
    return target


def real_path(path: str | os.PathLike[str]) -> Path:
    """Resolve symbolic links in a path that may be invalid."""
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:  # a NUL
        raise _unwritable(path, error) from None


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and its parents if they do not exist, and return it.

    Raises
    ------
    InvalidArgumentError
        If it cannot be created, for instance because the disk is full or a file has the same name.
    """
    folder = real_path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgumentError(
            f"{os.fspath(path)} cannot be created: {error.strerror}"
        ) from error
    return folder


def put_in_place(file: Path, target: Path) -> None:
    """Rename a complete file to a path from `check_writable`, with its permissions.

    Raises
    ------
    OSError
        If it cannot be renamed.
    """
    with suppress(FileNotFoundError):
        file.chmod(stat.S_IMODE(target.stat().st_mode) & 0o777)
    file.replace(target)


def temporary_path(target: Path) -> Path:
    """Return a new path next to a file or folder, named after it and the writing process."""
    writer = f"{platform.node()}@{os.getpid()}"
    return target.with_name(f"{_prefix(target)}{secrets.token_hex(4)}.{writer}.tmp")


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove temporary files and folders of killed processes.

    These are the ones that would have replaced the path and, for a folder, all inside it. Those of
    other machines are left, because their processes may still run.
    """
    target = real_path(path)
    _remove_dead(target.parent.glob(".*.tmp"), re.escape(_prefix(target)))
    if target.is_dir():
        _remove_dead(target.rglob(".*.tmp"), r"\..+\.")


def _remove_dead(paths: Iterable[Path], prefix: str) -> None:
    name = re.compile(rf"{prefix}[0-9a-f]{{8}}\.{re.escape(platform.node())}@([0-9]+)\.tmp", re.S)
    for leftover in list(paths):
        match = name.fullmatch(leftover.name)
        if match is not None and not psutil.pid_exists(int(match[1])):
            with suppress(OSError):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write bytes to a file, which is then either complete or unchanged."""
    with replace_file(path) as temporary:
        temporary.write_bytes(data)


def _prefix(target: Path) -> str:
    """Return the prefix of temporary files for a target; long names are hashed."""
    name = os.fsencode(target.name)
    return f".{target.name if len(name) <= _LONGEST_NAME else sha256(name).hexdigest()}."


def _unwritable(path: str | os.PathLike[str], reason: object) -> InvalidArgumentError:
    return InvalidArgumentError(f"{os.fspath(path)} cannot be written: {reason}")
