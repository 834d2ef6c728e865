import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch

from tensorpress.errors import InvalidArgumentError, TensorPressError
from tensorpress.utils.executors import IN_FLIGHT, connect_cluster, open_executor, run_jobs


def test_one_process_is_this_one_and_an_executor_is_used_as_it_is():
    with open_executor() as executor:
        assert executor is None
    with ThreadPoolExecutor(1) as pool:
        with open_executor(3, pool) as executor:
            assert executor is pool
        assert pool.submit(abs, -1).result() == 1


@pytest.mark.parametrize("processes", [0, -1, 1.5, True, "2"])
def test_processes_are_a_positive_number(processes):
    with (
        pytest.raises(InvalidArgumentError, match="processes must be an integer of at least 1"),
        open_executor(processes),
    ):
        pass


def test_processes_of_the_pool_have_one_thread():
    with open_executor(2) as executor:
        assert list(run_jobs(executor, torch.get_num_threads, [("a", ())])) == [("a", 1)]


def test_arguments_are_asked_for_when_their_turn_comes():
    asked, done = [], 0

    def jobs():
        for i in range(500):
            asked.append(i)
            yield i, (i,)

    with ThreadPoolExecutor(2) as pool:
        for _ in run_jobs(pool, abs, jobs()):
            done += 1
            assert len(asked) - done <= 3
    assert done == 500


def test_executors_of_unknown_size_get_a_bounded_number_of_jobs():
    class Unknown(ThreadPoolExecutor):
        def __init__(self):
            super().__init__(2)
            del self._max_workers

        def submit(self, function, *arguments):
            self._max_workers = 2
            try:
                return super().submit(function, *arguments)
            finally:
                del self._max_workers

    asked = []
    jobs = ((i, (i,)) for i in range(1000) if not asked.append(i))
    with Unknown() as pool:
        next(run_jobs(pool, abs, jobs))
    assert len(asked) == IN_FLIGHT + 1


def test_a_worker_that_dies_names_the_jobs_that_were_running():
    with (
        pytest.raises(TensorPressError, match=r"a process died during 'only'"),
        open_executor(2) as executor,
    ):
        list(run_jobs(executor, signal.raise_signal, [("only", (signal.SIGKILL,))]))


def test_jobs_that_an_executor_gives_up_are_named():
    class Ending(ThreadPoolExecutor):
        def submit(self, function, *arguments):
            future = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    with (
        Ending(1) as pool,
        pytest.raises(
            TensorPressError, match=r"the executor cancelled 'a', 'b': .*repeat the call"
        ),
    ):
        list(run_jobs(pool, abs, [("a", (1,)), ("b", (2,))]))


def test_what_cannot_be_sent_is_an_error_of_ours():
    with (
        pytest.raises(InvalidArgumentError, match="cannot be sent to another process"),
        open_executor(2) as executor,
    ):
        list(run_jobs(executor, lambda: 1, [("a", ())]))


SCRIPT = """
import signal, time
from tensorpress.utils.executors import open_executor, run_jobs
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the background ignores
    with open_executor(2) as executor:
        jobs = [(i, (600,)) for i in range(4)]
        list(run_jobs(executor, time.sleep, jobs))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_started_them(tmp_path: Path, number: int) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    deadline, workers = time.monotonic() + 60, []
    while time.monotonic() < deadline:
        workers = [
            child
            for child in psutil.Process(process.pid).children()
            if "spawn_main" in " ".join(child.cmdline()) and child.num_threads() > 1
        ]
        if len(workers) == 2:
            break
        time.sleep(0.05)
    assert len(workers) == 2
    process.send_signal(number)
    process.wait(30)
    assert psutil.wait_procs(workers, timeout=30)[1] == []


def test_without_an_address_there_is_no_cluster():
    with connect_cluster(None) as executor:
        assert executor is None


def test_a_cluster_that_does_not_answer_is_named():
    pytest.importorskip("distributed")
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.3s"}),
        pytest.raises(
            InvalidArgumentError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"
        ),
        connect_cluster("tcp://127.0.0.1:9"),
    ):
        pass
