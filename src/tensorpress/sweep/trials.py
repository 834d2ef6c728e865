"""The runs of a sweep."""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from tensorpress.errors import DivergedError, TensorPressError
from tensorpress.runs.recipe import Recipe
from tensorpress.runs.run import run, train_common
from tensorpress.runs.training import COMMON_PHASES, common_part
from tensorpress.sweep.picks import Outcome, Trial
from tensorpress.sweep.variants import Variant
from tensorpress.utils.jobs import JobFolder

_SUBJECT = {"task": "sweep"}
_COMMON = "common"


@dataclass(frozen=True)
class _Task:
    """A run and its name in messages."""

    name: str
    recipe: Recipe
    seed: int


def run_trials(
    variants: Sequence[Variant],
    out: str | os.PathLike[str],
    *,
    seeds: Sequence[int],
    executor: Executor | None,
) -> list[Outcome]:
    """Run every variant with every seed, without the test images.

    Training that several runs have in common is done first, once. An interrupted run continues
    after its last complete epoch. A terminal shows a bar; elsewhere the logger ``tensorpress.jobs``
    writes one line per run at level INFO.

    Parameters
    ----------
    variants : sequence of Variant
        From `read_sweep`.
    out : path-like
        Folder for the subfolders ``runs``, with a folder for every run; ``jobs``, with the results;
        and ``common``, with shared checkpoints. All workers must see it.
    seeds : sequence of int
        The seeds of the runs of each variant.
    executor : Executor, optional
        Workers for the runs; by default they run in this process, one after another.

    Raises
    ------
    InvalidArgumentError
        If the folder has other content or cannot be written.
    TensorPressError
        If a run fails for any reason but divergence, or a worker is killed. Finished runs are not
        lost.
    """
    folder = Path(out).absolute()
    tasks = {
        _job_name(variant, seed): _Task(f"{variant.name}, seed {seed}", variant.recipe, seed)
        for seed in seeds
        for variant in variants
    }
    jobs = JobFolder(folder / "jobs", _SUBJECT)
    if not tasks.keys() <= jobs.results().keys():
        common = folder / _COMMON
        for phase in COMMON_PHASES:
            _train_common(common, phase, list(tasks.values()), executor)
        jobs.run(
            {job: (task, folder / _run_folder(job), common) for job, task in tasks.items()},
            _run_task,
            title="sweep",
            executor=executor,
            describe=lambda job, result: _describe(tasks[job], result),
        )
    results = jobs.results()
    return [
        Outcome(variant, [_trial(_job_name(variant, seed), seed, results) for seed in seeds])
        for variant in variants
    ]


def _job_name(variant: Variant, seed: int) -> str:
    return f"{variant.id}-seed{seed}"


def _run_folder(job: str) -> str:
    return f"runs/{job}"


def _trial(job: str, seed: int, results: Mapping[str, Mapping[str, Any]]) -> Trial:
    result = results[job]
    return Trial(seed, _run_folder(job), result["bytes"], result["validation_error"])


def _describe(task: _Task, result: Mapping[str, Any]) -> str:
    size, error = result["bytes"], result["validation_error"]
    return f"{task.name}: " + ("diverged" if size is None else f"{size:,} bytes, {error:.2f} %")


def _train_common(
    common: Path, phase: str, tasks: Sequence[_Task], executor: Executor | None
) -> None:
    """Train up to a phase, once for all tasks that have it in common."""
    first = {common_part(task.recipe, phase, task.seed): task for task in reversed(tasks)}
    jobs = JobFolder(common / "jobs", _SUBJECT)
    parts = {part: (first[part], common, phase) for part in reversed(first)}
    jobs.run(parts, _train_part, title=f"sweep, {phase}", executor=executor)


def _train_part(task: _Task, common: Path, phase: str) -> None:
    # If this diverges, the runs will diverge too and report it.
    with _hide_worker_output(), _name_task(task), suppress(DivergedError):
        train_common(task.recipe, common, phase, task.seed)


def _run_task(task: _Task, folder: Path, common: Path) -> dict[str, float | None]:
    """Run a task and return its bytes and validation error, or None if it diverged."""
    with _hide_worker_output(), _name_task(task):
        try:
            metrics = run(task.recipe, folder, seed=task.seed, test=False, common=common).metrics
        except DivergedError:
            return {"bytes": None, "validation_error": None}
    file = metrics["file"]
    return {"bytes": file["bytes"], "validation_error": file["validation_error"]}


@contextmanager
def _hide_worker_output() -> Iterator[None]:
    """Hide the progress bars of a worker, because the sweep shows a bar."""
    worker = parent_process() is not None
    with redirect_stdout(io.StringIO()) if worker else nullcontext():
        yield


@contextmanager
def _name_task(task: _Task) -> Iterator[None]:
    try:
        yield
    except DivergedError:
        raise
    except TensorPressError as error:
        raise type(error)(f"{task.name}: {error}") from None
