"""Jobs with results in files, so that interrupted work can be continued."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.progress import Progress

from tensorpress.errors import CorruptFileError, DataNotFoundError, InvalidArgumentError
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.config_parsing import parse_json
from tensorpress.utils.executors import run_jobs
from tensorpress.utils.paths import read_file
from tensorpress.utils.progress import show_progress

logger = logging.getLogger("tensorpress.jobs")

SUBJECT = "subject.json"


class JobFolder:
    """A folder with the results of finished jobs, in one JSON file each.

    Only the process that calls `run` writes to it, and incomplete results never appear.

    Parameters
    ----------
    folder : path
        The folder, which is created if needed.
    subject : mapping of str to JSON value
        Description of the work. A folder has the results of a single subject.

    Raises
    ------
    InvalidArgumentError
        If the folder has another subject (the message names the difference) or cannot be written.
    CorruptFileError
        If the stored subject cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> folder = JobFolder(tempfile.mkdtemp(), {"task": "lengths"})
    >>> folder.run({"three": ("three",), "fifteen": ("fifteen",)}, len, title="lengths")
    {'three': 5, 'fifteen': 7}
    >>> folder.results() == {'three': 5, 'fifteen': 7}
    True
    """

    def __init__(self, folder: str | os.PathLike[str], subject: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        text = json.dumps(dict(subject), sort_keys=True, indent=1)
        self._about = sha256(text.encode()).hexdigest()[:12]
        with _name_unwritable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / SUBJECT
            if not path.exists():
                write_atomically(path, text.encode())
        self._check_subject(_read_object(path), json.loads(text))

    def results(self) -> dict[str, Any]:
        """Return the results of finished jobs by name.

        A damaged result is left out with a warning, and its job is repeated.

        Raises
        ------
        InvalidArgumentError
            If a result is of another subject.
        """
        results = {}
        for path in sorted(self.folder.glob("*.json")):
            if path.name == SUBJECT:
                continue
            try:
                entry = self._read_entry(path)
            except CorruptFileError as error:
                logger.warning("%s: the job will be repeated", error)
            else:
                results[entry["job"]] = entry["result"]
        return results

    def run(
        self,
        jobs: Mapping[str, tuple[Any, ...]],
        function: Callable[..., Any],
        *,
        title: str,
        executor: Executor | None = None,
        describe: Callable[[str, Any], str] = lambda name, result: f"{name} done",
    ) -> dict[str, Any]:
        """Do all jobs without a result, and return all results.

        Parameters
        ----------
        jobs : mapping of str to tuple
            The arguments of each job by name, in order.
        function : callable
            Function from the arguments of a job to a JSON value.
        title : str
            Title of the progress bar and of the lines of the logger ``tensorpress.jobs``.
        executor : Executor, optional
            Workers for the jobs; by default they run in this process. See
            `tensorpress.utils.executors`.
        describe : callable
            Function from a job's name and result to the text of its log line.

        Returns
        -------
        dict
            The results by name, in the order of ``jobs``.

        Raises
        ------
        InvalidArgumentError
            If a result is not a JSON value, or the folder cannot be written.
        TensorPressError
            If a worker dies.

        Errors of jobs are raised here; the results of finished jobs are preserved.
        """
        results = self.results()
        done = {name: results[name] for name in jobs if name in results}
        left = {name: arguments for name, arguments in jobs.items() if name not in done}
        with Progress(disable=not show_progress()) as bar:
            task = bar.add_task(title, total=len(jobs), completed=len(done))
            for name, result in self.iterate(left, function, executor):
                done[name] = result
                bar.update(task, completed=len(done))
                text = describe(name, result)
                logger.info("%s: %s, %d of %d", title, text, len(done), len(jobs))
        return {name: done[name] for name in jobs}

    def iterate(
        self,
        jobs: Mapping[str, tuple[Any, ...]],
        function: Callable[..., Any],
        executor: Executor | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Do jobs, even if they have results, and yield each result after it is written.

        Parameters and errors are the same as those of `run`.
        """
        for name, result in run_jobs(executor, function, jobs.items()):
            yield name, self._write_entry(name, result)

    def _path(self, name: str) -> Path:
        """Return the file of a job, with a readable prefix and a unique hash."""
        readable = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:60].strip("-")
        return self.folder / f"{readable}.{sha256(name.encode()).hexdigest()[:12]}.json"

    def _write_entry(self, name: str, result: Any) -> Any:
        """Write a result, and return it as a later call will read it."""
        entry = {"job": name, "about": self._about, "result": result}
        try:
            text = json.dumps(entry, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"the result of job {name!r}: {error}") from None
        path = self._path(name)
        with _name_unwritable(path):
            write_atomically(path, text.encode())
        return json.loads(text)["result"]

    def _read_entry(self, path: Path) -> dict[str, Any]:
        entry = _read_object(path)
        if not ({"about", "result"} <= entry.keys() and isinstance(entry.get("job"), str)):
            raise CorruptFileError(f"{path} is not the result of a job")
        if entry["about"] != self._about:
            raise InvalidArgumentError(f"{path} is the result of a job with another subject")
        return entry

    def _check_subject(self, stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        for key in sorted({*stored, *expected}):
            if stored.get(key) != expected.get(key):
                raise InvalidArgumentError(
                    f"{self.folder} has results of other settings: {key!r} is {stored.get(key)!r} "
                    f"there and {expected.get(key)!r} here; choose another folder"
                )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_file(path, "result"))
    except ValueError as error:
        raise CorruptFileError(f"{path} is not complete JSON: {error}; delete it") from None
    except DataNotFoundError as error:
        raise CorruptFileError(str(error)) from None
    if not isinstance(content, dict):
        raise CorruptFileError(f"{path} is not the result of a job")
    return content


@contextmanager
def _name_unwritable(path: Path) -> Iterator[None]:
    """Turn an `OSError` into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise InvalidArgumentError(f"{path} cannot be written: {error.strerror or error}") from None
