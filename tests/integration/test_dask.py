"""Jobs on a Dask cluster of two worker processes on this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.utils.executors import connect_cluster
from tensorpress.utils.jobs import JobFolder

distributed = pytest.importorskip("distributed", reason="needs the extra cluster")


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 50), nn.Linear(50, 8))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.fixture
def executor(cluster: Any) -> Iterator[Any]:
    with connect_cluster(cluster.scheduler_address) as executor:
        yield executor


def _work(seconds: float, value: int) -> list[int]:
    time.sleep(seconds)
    return [value, os.getpid()]


def test_layers_are_pressed_to_the_same_values(executor: Any) -> None:
    net = _net()
    plan = tp.plan(net, scheme="channel_svd", ranks=0.3)
    expected = tp.press(net, plan).state_dict()
    result = tp.press(net, plan, executor=executor).state_dict()
    assert result.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(result[name], values, msg=name)


def test_choices_are_measured_as_in_one_process(executor: Any, tmp_path: Path) -> None:
    net, batches = _net(), [torch.randn(30, 40)]
    expected = tp.sensitivity(net, batches, candidates=2)
    result = tp.sensitivity(net, batches, candidates=2, journal=tmp_path, executor=executor)
    for name, choices in expected.layers.items():
        scores = [choice.score for choice in result.layers[name]]
        assert scores == pytest.approx([choice.score for choice in choices], rel=1e-4)


def test_a_job_whose_worker_is_killed_is_done_by_another(executor: Any, tmp_path: Path) -> None:
    folder = JobFolder(tmp_path, {"task": "test"})
    jobs = {str(i): (0.3, i) for i in range(8)}
    results = folder.iterate(jobs, _work, executor)
    name, (value, victim) = next(results)
    assert name == str(value)
    os.kill(victim, signal.SIGKILL)
    rest = dict(results)
    assert {int(name): value for name, (value, _) in rest.items()} == {
        i: i for i in range(8) if str(i) != name
    }
    assert folder.results().keys() == jobs.keys()


DRIVER = """
import sys, time
from tensorpress.utils.executors import connect_cluster
from tensorpress.utils.jobs import JobFolder
with connect_cluster(sys.argv[1]) as executor:
    jobs = {str(i): (0.25,) for i in range(12)}
    JobFolder(sys.argv[2], {"task": "sleep"}).run(jobs, time.sleep, title="t", executor=executor)
"""


def test_a_killed_driver_goes_on_with_what_is_left(cluster: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-c", DRIVER, cluster.scheduler_address, str(tmp_path)]
    driver = subprocess.Popen(command)
    folder = JobFolder(tmp_path, {"task": "sleep"})
    while not (before := folder.results()):
        assert driver.poll() is None
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert 0 < len(before) < 12
    subprocess.run(command, check=True, timeout=60)
    assert len(folder.results()) == 12
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())


def test_the_command_line_presses_on_a_cluster(cluster: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    command = [sys.executable, "-m", "tensorpress", "press", "--model", "lenet300100"]
    how = ["--scheme", "channel_svd", "--ranks", "0.2", "--out"]
    torch.manual_seed(0)
    for name, more in (("alone", []), ("cluster", ["--cluster", cluster.scheduler_address])):
        seeded = {**os.environ, "PYTHONHASHSEED": "0"}
        subprocess.run(
            [*command, *how, name, *more], cwd=tmp_path, check=True, env=seeded, timeout=120
        )
    alone, together = (
        load_file(tmp_path / name / "model.safetensors") for name in ("alone", "cluster")
    )
    assert alone.keys() == together.keys()
    assert {tuple(x.shape) for x in alone.values()} == {tuple(x.shape) for x in together.values()}


def test_the_workers_are_processes_of_their_own(cluster: Any, executor: Any) -> None:
    pids = {executor.submit(_work, 0.2, i).result()[1] for i in range(2)}
    assert os.getpid() not in pids
    assert all(psutil.pid_exists(pid) for pid in pids)
