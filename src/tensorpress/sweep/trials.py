"""The runs of a sweep, in several processes; what was done before is not done again."""

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from tensorpress.errors import DivergedError, TensorPressError
from tensorpress.runs.recipe import Recipe
from tensorpress.runs.run import run, train_common
from tensorpress.runs.training import COMMON_PHASES, common_part
from tensorpress.sweep.picks import Outcome, Trial
from tensorpress.sweep.variants import Variant
from tensorpress.utils.shared_jobs import JobFolder

logger = logging.getLogger("tensorpress.sweep")

_SUBJECT = {"task": "sweep"}
_COMMON = "common"
_POLL = 1.0  # seconds


@dataclass(frozen=True)
class _Task:
    """A run to do, and what it is called to the user."""

    name: str
    recipe: Recipe
    seed: int


def run_trials(
    variants: Sequence[Variant],
    out: str | os.PathLike[str],
    *,
    seeds: Sequence[int],
    processes: int,
) -> list[Outcome]:
    """Run every variant with every seed, without a look at the test images.

    Each process has one thread, and takes the next run that nobody has done or is doing; sweeps
    that are started elsewhere on the same folder share the work. Training that runs have in common,
    before it matters how the file is made, is done first, once. A run that was interrupted goes on
    where its last epoch ended. A terminal shows a bar; elsewhere the logger ``tensorpress.sweep``
    gets a line a run at level INFO.

    Parameters
    ----------
    variants : sequence of Variant
        From `read_sweep`.
    out : path-like
        Receives the folder of every run in ``runs``, its result in ``jobs``, and in ``common`` what
        several have in common.
    seeds : sequence of int
        Of the runs of each variant.
    processes : int
        How many.

    Raises
    ------
    InvalidArgumentError
        If the folder holds something else, or cannot be written.
    TensorPressError
        For what a run ends with other than divergence, or if a process is killed. What is done
        stays done.
    """
    tasks = {
        _job(variant, seed): _Task(f"{variant.name}, seed {seed}", variant.recipe, seed)
        for seed in seeds
        for variant in variants
    }
    jobs = JobFolder(Path(out, "jobs"), _SUBJECT)
    if not tasks.keys() <= jobs.results().keys():
        _in_processes(Path(out), tasks, jobs, processes)
    found = jobs.results()
    return [
        Outcome(variant, [_trial(_job(variant, seed), seed, found) for seed in seeds])
        for variant in variants
    ]


def _job(variant: Variant, seed: int) -> str:
    return f"{variant.id}-seed{seed}"


def _folder(job: str) -> str:
    return f"runs/{job}"


def _trial(job: str, seed: int, found: Mapping[str, Mapping[str, Any]]) -> Trial:
    result = found[job]
    return Trial(seed, _folder(job), result["bytes"], result["validation_error"])


def _in_processes(out: Path, tasks: Mapping[str, _Task], jobs: JobFolder, processes: int) -> None:
    """Do all tasks, in new processes with one thread each, and tell how far they are."""
    context = get_context("spawn")
    errors = context.SimpleQueue()
    working = [
        context.Process(target=_work, args=(out, tasks, errors), daemon=True)
        for _ in range(min(processes, len(tasks)))
    ]
    console = Console()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        shown = bar.add_task("sweep", total=len(tasks))
        done = set(jobs.results())
        bar.update(shown, completed=len(done & tasks.keys()))
        try:
            for process in working:
                process.start()
            while any(process.is_alive() for process in working) and errors.empty():
                connection.wait([process.sentinel for process in working], timeout=_POLL)
                done = _told(tasks, jobs, done)
                bar.update(shown, completed=len(done & tasks.keys()))
        finally:
            started = [process for process in working if process.pid is not None]
            for process in started:
                process.terminate()
            for process in started:
                process.join()
    if not errors.empty():
        raise errors.get()
    if not tasks.keys() <= jobs.results().keys():
        raise TensorPressError(
            "a process of the sweep ended before its work did: memory may have run out, so use "
            "fewer processes; start the sweep again to go on"
        )


def _told(tasks: Mapping[str, _Task], jobs: JobFolder, before: set[str]) -> set[str]:
    """Tell which tasks were done since; return all that are."""
    results = jobs.results()
    for job in [job for job in tasks if job in results and job not in before]:
        result, count = results[job], len(results.keys() & tasks.keys())
        size, error = result["bytes"], result["validation_error"]
        came_to = "diverged" if size is None else f"{size:,} bytes, {error:.2f} %"
        logger.info("%s: %s, %d of %d", tasks[job].name, came_to, count, len(tasks))
    return set(results)


def _work(out: Path, tasks: Mapping[str, _Task], errors: "SimpleQueue[TensorPressError]") -> None:
    """Do tasks that are free until all are done: what runs in each process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what started this process is told, and ends it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # claims are given back on the way out
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    # One bar for all processes is enough, and no terminal could show more.
    with redirect_stdout(io.StringIO()):
        try:
            _do(out, tasks)
        except TensorPressError as error:
            errors.put(error)


def _do(out: Path, tasks: Mapping[str, _Task]) -> None:
    """Do the training that tasks have in common, and then the tasks."""
    common = out / _COMMON
    for phase in COMMON_PHASES:
        _begin(common, phase, list(tasks.values()))

    def do(job: str) -> dict[str, float | None]:
        with _naming(tasks[job]):
            return _result(tasks[job], out / _folder(job), common)

    JobFolder(out / "jobs", _SUBJECT).run(list(tasks), do, title="sweep")


def _begin(common: Path, phase: str, tasks: Sequence[_Task]) -> None:
    """Do the training up to a phase, once for all tasks that have it in common."""
    first = {common_part(task.recipe, phase, task.seed): task for task in reversed(tasks)}

    def train(part: str) -> None:
        task = first[part]
        with _naming(task), suppress(DivergedError):  # the runs will tell
            train_common(task.recipe, common, phase, task.seed)

    jobs = JobFolder(common / "jobs", _SUBJECT)
    jobs.run(list(reversed(first)), train, title=f"sweep, {phase}")


@contextmanager
def _naming(task: _Task) -> Iterator[None]:
    try:
        yield
    except DivergedError:
        raise
    except TensorPressError as error:
        raise type(error)(f"{task.name}: {error}") from None


def _result(task: _Task, folder: Path, common: Path) -> dict[str, float | None]:
    """Carry out a run and return what a sweep needs of it."""
    try:
        file = run(task.recipe, folder, seed=task.seed, test=False, common=common).metrics["file"]
    except DivergedError:
        return {"bytes": None, "validation_error": None}
    return {"bytes": file["bytes"], "validation_error": file["validation_error"]}


def _end_with_parent() -> None:
    """Wait for the end of the process that started this one, and end."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
