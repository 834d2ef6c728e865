"""Independent jobs on any `concurrent.futures.Executor`: a process pool, Dask, MPI."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager
from itertools import islice
from multiprocessing import connection, get_context
from pickle import PicklingError
from threading import Thread
from typing import Any, TypeVar

from tensorpress.errors import InvalidArgumentError, TensorPressError

Key = TypeVar("Key")
Result = TypeVar("Result")

IN_FLIGHT = 64
"""Jobs submitted at once to an executor that does not say how many workers it has."""


def check_processes(processes: int) -> None:
    """Raise an `InvalidArgumentError` unless a number of processes is a positive integer."""
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise InvalidArgumentError(f"processes are a number of at least 1, got {processes!r}")


@contextmanager
def open_executor(
    processes: int = 1, executor: Executor | None = None
) -> Iterator[Executor | None]:
    """Yield the executor that jobs run on; None stands for this process.

    Parameters
    ----------
    processes : int
        The size of a process pool that lives as long as the block. Its workers are started by
        spawning and have one thread each. They end when the block is left by an error, and when
        this process dies.
    executor : Executor, optional
        An executor of the caller, which is used in place of a pool and not shut down.

    Raises
    ------
    InvalidArgumentError
        If ``processes`` is not a positive integer.
    """
    check_processes(processes)
    if executor is not None or processes == 1:
        yield executor
        return
    # A forked process would hang in the threads that its parent had started.
    context = get_context("spawn")
    # Workers read the end of the block, and that of this process, as the end of this pipe.
    reader, writer = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(processes, context, _start_worker, (reader,))
    try:
        yield pool
    except BaseException:
        writer.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        writer.close()
        reader.close()


@contextmanager
def connect_cluster(address: str | None) -> Iterator[Executor | None]:
    """Yield the executor of a Dask cluster, None without an address.

    Parameters
    ----------
    address : str, optional
        The address of the cluster's scheduler, such as ``tcp://host:8786``.

    Raises
    ------
    InvalidArgumentError
        If the package `distributed` is missing, or no scheduler answers.
    """
    if address is None:
        yield None
        return
    try:
        import distributed
    except ImportError:
        raise InvalidArgumentError(
            "a cluster needs the package distributed: pip install 'tensorpress[cluster]'"
        ) from None
    try:
        make_client: Any = distributed.Client
        client = make_client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"no Dask scheduler answers at {address}: {error}") from None
    with client:
        yield client.get_executor(pure=False)


def run_jobs(
    executor: Executor | None,
    function: Callable[..., Result],
    jobs: Iterable[tuple[Key, tuple[Any, ...]]],
) -> Iterator[tuple[Key, Result]]:
    """Call a function for every job and yield the results as they come.

    Arguments are asked for when their turn comes: one job more is submitted than there are
    workers, so that none waits, and so that few arguments are in memory.

    Parameters
    ----------
    executor : Executor, optional
        Where the function is called; without it, in this process, in the order of the jobs.
    function : callable
        A function of a module, which an executor can pickle.
    jobs : iterable of (key, arguments)
        What to call it with. Keys are hashable and name the jobs in errors.

    Yields
    ------
    key, result
        Of each job. Errors that a job raises are raised here, and what has not begun is cancelled.

    Raises
    ------
    TensorPressError
        If a worker ends before its job does, or the executor gives its jobs up (as Dask does when
        its scheduler ends), naming the jobs that were running.

    Examples
    --------
    >>> list(run_jobs(None, max, [("a", (1, 2)), ("b", (3, 0))]))
    [('a', 2), ('b', 3)]
    """
    if executor is None:
        for key, arguments in jobs:
            yield key, function(*arguments)
        return
    queue = iter(jobs)
    limit = getattr(executor, "_max_workers", IN_FLIGHT) + 1
    running: dict[Future[Result], Key] = {}
    try:
        while True:
            for key, arguments in islice(queue, limit - len(running)):
                running[executor.submit(function, *arguments)] = key
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                result = _result(future, list(running.values()))
                yield running.pop(future), result
    except BrokenExecutor:
        raise _worker_ended(list(running.values())) from None
    finally:
        for future in running:
            future.cancel()


def _result(future: "Future[Result]", keys: Sequence[object]) -> Result:
    try:
        return future.result()
    except BrokenExecutor:
        raise
    except CancelledError:
        raise TensorPressError(
            f"the executor gave up its work on {_list_names(keys)}: it was shut down, or its "
            "scheduler ended or can no longer be reached; start again to go on"
        ) from None
    except Exception as error:
        # Dask gives up on a job whose workers died three times.
        if type(error).__name__ == "KilledWorker":
            raise _worker_ended(keys) from None
        if isinstance(error, PicklingError | AttributeError | TypeError) and "pickle" in str(error):
            raise InvalidArgumentError(
                f"a job cannot be sent to other processes: {error}"
            ) from None
        raise


def _worker_ended(keys: Sequence[object]) -> TensorPressError:
    return TensorPressError(
        f"a process ended before its work on {_list_names(keys)} did. Either memory ran out: use "
        "fewer processes. Or this is a script that does not start its work under `if __name__ == "
        '"__main__":`, as Python asks of scripts that use several processes'
    )


def _list_names(keys: Sequence[object]) -> str:
    return ", ".join(sorted(map(repr, keys)))


def _start_worker(reader: "connection.Connection") -> None:
    """Prepare a process of the pool: one thread, no interrupts, and an end with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and ends the pool
    Thread(target=_end_with_pipe, args=(reader,), daemon=True).start()
    import torch  # after the thread, because it takes seconds in which the parent may die

    torch.set_num_threads(1)


def _end_with_pipe(reader: "connection.Connection") -> None:
    connection.wait([reader])
    os.kill(os.getpid(), signal.SIGKILL)
