"""Independent jobs whose results are files that processes and machines share."""

import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from threading import Event, Thread
from typing import Any

from rich.console import Console
from rich.progress import Progress

from tensorpress.errors import CorruptFileError, InvalidArgumentError
from tensorpress.utils.atomic_files import write_atomically

logger = logging.getLogger("tensorpress.jobs")

SUBJECT = "subject.json"


class JobFolder:
    """A folder that holds the result of every finished job, one JSON file each.

    Any number of processes, on machines that see the same folder, may `run` the same jobs at the
    same time: a job is done by the first to create its claim file. Whoever is killed leaves a
    claim that is no longer renewed, and the job is taken over. A result is there complete or not at
    all, so what was interrupted goes on where it stopped.

    Parameters
    ----------
    folder : path
        Made if it is not there.
    subject : mapping of str to JSON value
        What the jobs are about. A folder holds the results of one subject.
    stale_after : float
        Seconds after which a claim that nobody renews is taken over, by the clock of the folder's
        file system.

    Raises
    ------
    InvalidArgumentError
        If the folder is about something else (naming what differs) or cannot be written.
    CorruptFileError
        If its subject cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> folder = JobFolder(tempfile.mkdtemp(), {"task": "lengths"})
    >>> folder.run(["three", "fifteen"], len, title="lengths")
    {'three': 5, 'fifteen': 7}
    >>> folder.results() == {'three': 5, 'fifteen': 7}
    True
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        subject: Mapping[str, Any],
        *,
        stale_after: float = 60.0,
    ) -> None:
        self.folder, self._stale_after = Path(folder), stale_after
        text = json.dumps(dict(subject), sort_keys=True, indent=1)
        self._about = sha256(text.encode()).hexdigest()[:12]
        with _saying(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / SUBJECT
        if not path.exists():
            write_atomically(path, text.encode())
        self._check_subject(_read(path), json.loads(text))

    def results(self) -> dict[str, Any]:
        """Return the results of the jobs that are done, by name.

        Raises
        ------
        CorruptFileError
            Naming a file that is not a result.
        """
        paths = sorted(self.folder.glob("*.json"))
        entries = [self._entry(path) for path in paths if path.name != SUBJECT]
        return {entry["job"]: entry["result"] for entry in entries}

    def run(self, jobs: Sequence[str], do: Callable[[str], Any], *, title: str) -> dict[str, Any]:
        """Do every job that is free, wait for those that others do, and return all results.

        Parameters
        ----------
        jobs : sequence of str
            Their names, the first to do first.
        do : callable
            From a name to a JSON value.
        title : str
            What the progress bar, and each line of the logger ``tensorpress.jobs``, says.

        Returns
        -------
        dict
            From each name to its result, in the order of ``jobs``.

        Raises
        ------
        InvalidArgumentError
            If a result is no JSON value or the folder cannot be written.
        CorruptFileError
            Naming a file that is not a result.

        Whatever ``do`` raises goes on, and its job is free again.
        """
        names = list(dict.fromkeys(jobs))
        done: dict[str, Any] = {}
        console = Console()
        with Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(title, total=len(names))
            while len(done) < len(names):
                before = len(done)
                for name in names:
                    if name not in done and self._attempt(name, do):
                        done[name] = self._entry(self._path(name))["result"]
                        bar.update(task, completed=len(done))
                        logger.info("%s: %s done, %d of %d", title, name, len(done), len(names))
                if len(done) == before:
                    time.sleep(min(1.0, self._stale_after / 5))
        return {name: done[name] for name in names}

    def _attempt(self, name: str, do: Callable[[str], Any]) -> bool:
        """Do a job unless it is done or another's; return whether its result is there."""
        path = self._path(name)
        if path.exists():
            return True
        with self._claimed(path.with_suffix(".claim")) as ours:
            # It may have been finished between the look and the claim.
            if ours and not path.exists():
                self._write(path, name, do(name))
        return path.exists()

    @contextmanager
    def _claimed(self, claim: Path) -> Iterator[bool]:
        """Hold a claim, and keep it fresh, if nobody else does; yield whether it is held."""
        mine = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}".encode()
        if not self._create(claim, mine):
            yield False
            return
        stop = Event()
        beat = Thread(target=self._keep_fresh, args=(claim, stop), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            stop.set()
            beat.join()
            # A process that was asleep for long may have lost its claim to another.
            with suppress(FileNotFoundError):
                if claim.read_bytes() == mine:
                    claim.unlink()

    def _create(self, claim: Path, mine: bytes) -> bool:
        """Create a claim unless a live one is there; return whether it was created."""
        with _saying(claim):
            self._free_if_stale(claim)
            try:
                with claim.open("xb") as file:
                    file.write(mine)
            except FileExistsError:
                return False
        return True

    def _keep_fresh(self, claim: Path, stop: Event) -> None:
        while not stop.wait(self._stale_after / 10):
            with suppress(OSError):
                os.utime(claim)

    def _free_if_stale(self, claim: Path) -> None:
        """Remove a claim that is no longer renewed."""
        with suppress(FileNotFoundError):
            held = claim.read_bytes()
            if self._now() - claim.stat().st_mtime < self._stale_after:
                return
            # Of several that see it stale, one gets to rename it.
            gone = claim.with_suffix(f".{secrets.token_hex(4)}.stale")
            claim.rename(gone)
            if gone.read_bytes() == held:
                logger.warning("taking over %s, last held by %s", claim.stem, held.decode())
                gone.unlink()
            else:  # Another took it over between the look and the rename.
                gone.replace(claim)

    def _now(self) -> float:
        """Return the time of the file system, which machines that share it agree about."""
        clock = self.folder / ".clock"
        clock.touch()
        return clock.stat().st_mtime

    def _path(self, name: str) -> Path:
        """Return the file of a job: a readable beginning, and a digest that tells it apart."""
        readable = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:60].strip("-")
        return self.folder / f"{readable}.{sha256(name.encode()).hexdigest()[:12]}.json"

    def _write(self, path: Path, name: str, result: Any) -> None:
        entry = {"job": name, "about": self._about, "result": result}
        try:
            text = json.dumps(entry, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"the result of job {name!r}: {error}") from None
        write_atomically(path, text.encode())

    def _entry(self, path: Path) -> dict[str, Any]:
        entry = _read(path)
        if not {"job", "about", "result"} <= entry.keys():
            raise CorruptFileError(f"{path} is not the result of a job")
        if entry["about"] != self._about:
            raise InvalidArgumentError(f"{path} is the result of a job about something else")
        return entry

    def _check_subject(self, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        for key in sorted({*found, *expected}):
            if found.get(key) != expected.get(key):
                raise InvalidArgumentError(
                    f"{self.folder} holds jobs about something else: {key!r} is "
                    f"{found.get(key)!r} there and {expected.get(key)!r} here; give another folder"
                )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptFileError(f"{path} is not complete JSON: {error}; delete it") from None
    if not isinstance(content, dict):
        raise CorruptFileError(f"{path} is not the result of a job")
    return content


@contextmanager
def _saying(path: Path) -> Iterator[None]:
    """Say which file cannot be written."""
    try:
        yield
    except OSError as error:
        raise InvalidArgumentError(f"{path} cannot be written: {error.strerror or error}") from None
