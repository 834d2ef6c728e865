"""Independent jobs on any `concurrent.futures.Executor`: a process pool, Dask or MPI."""

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
"""Jobs submitted at once to an executor with an unknown number of workers."""


def check_processes(processes: int) -> None:
    """Raise an `InvalidArgumentError` unless a number of processes is a positive integer."""
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise InvalidArgumentError(f"processes must be an integer of at least 1, got {processes!r}")


@contextmanager
def open_executor(
    processes: int = 1, executor: Executor | None = None
) -> Iterator[Executor | None]:
    """Yield the executor for jobs; None stands for this process.

    Parameters
    ----------
    processes : int
        Size of a process pool that exists during the block. Its workers are spawned and have one
        thread each. They end when the block raises an error, and when this process dies.
    executor : Executor, optional
        An executor to use instead of a pool; it is not shut down.

    Raises
    ------
    InvalidArgumentError
        If ``processes`` is not a positive integer.
    """
    check_processes(processes)
    if executor is not None or processes == 1:
        yield executor
        return
    # A forked process could hang on locks of its parent's threads.
    context = get_context("spawn")
    # When the block or this process ends, this pipe is closed, and the workers end.
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
    """Yield the executor of a Dask cluster, or None without an address.

    Parameters
    ----------
    address : str, optional
        The address of the cluster's scheduler, such as ``tcp://host:8786``.

    Raises
    ------
    InvalidArgumentError
        If the package `distributed` is not installed, or no scheduler answers.
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
    """Call a function for every job, and yield the results as they become available.

    Arguments are produced when they are needed. One job more is submitted than there are workers,
    so that no worker waits and few arguments are in memory.

    Parameters
    ----------
    executor : Executor, optional
        Workers for the jobs; by default they run in this process, in order.
    function : callable
        Function that an executor can pickle: one defined at the top level of a module.
    jobs : iterable of (key, arguments)
        Arguments of each job. Keys are hashable and name the jobs in errors.

    Yields
    ------
    key, result
        The key and result of each job. If a job raises an error, it is raised here, and jobs that
        have not begun are cancelled.

    Raises
    ------
    TensorPressError
        If a worker dies, or the executor cancels its jobs (as Dask does when its scheduler ends);
        the message names the jobs that were running.

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
            f"the executor cancelled {_list_names(keys)}: it was shut down, or its scheduler ended "
            "or cannot be reached; repeat the call to continue"
        ) from None
    except Exception as error:
        # Dask cancels a job after three workers died.
        if type(error).__name__ == "KilledWorker":
            raise _worker_ended(keys) from None
        if isinstance(error, PicklingError | AttributeError | TypeError) and "pickle" in str(error):
            raise InvalidArgumentError(
                f"a job cannot be sent to another process: {error}"
            ) from None
        raise


def _worker_ended(keys: Sequence[object]) -> TensorPressError:
    return TensorPressError(
        f"a process died during {_list_names(keys)}. Either memory ran out: use fewer processes. "
        'Or a script does not start under `if __name__ == "__main__":`, which Python requires if '
        "it uses several processes"
    )


def _list_names(keys: Sequence[object]) -> str:
    return ", ".join(sorted(map(repr, keys)))


def _start_worker(reader: "connection.Connection") -> None:
    """Prepare a process of the pool: one thread, no interrupts, and it ends with its parent."""
    # Ctrl-C interrupts the parent, which ends the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_pipe, args=(reader,), daemon=True).start()
    import torch  # after the thread, because the import takes seconds

    torch.set_num_threads(1)


def _end_with_pipe(reader: "connection.Connection") -> None:
    connection.wait([reader])
    os.kill(os.getpid(), signal.SIGKILL)
