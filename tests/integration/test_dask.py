"""Jobs on a Dask cluster of two worker processes on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tensorpress as tp
from command_line import call
from tensorpress.checkpoints import press_checkpoint
from tensorpress.models.zoo import network
from tensorpress.utils.executors import connect_cluster
from tensorpress.utils.jobs import JobFolder

distributed = pytest.importorskip("distributed", reason="needs the extra cluster")


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 50), nn.Linear(50, 8))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as each worker has
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster
    torch.set_num_threads(threads)


@pytest.fixture
def executor(cluster: Any) -> Iterator[Any]:
    with connect_cluster(cluster.scheduler_address) as executor:
        yield executor


SWEEP = """
recipe:
  title: LeNet-300-100 on digits
  network: lenet300100
  data: {name: digits, validation: 200, batch_size: 200}
  dense: {epochs: 1, lr: 0.003}
  press: {scheme: channel_svd, ranks: 4}
  quantize: {step: 0.5}
vary:
  press.ranks: [2]
"""


def test_layers_are_pressed_to_the_same_values(executor: Any) -> None:
    net = _net()
    plan = tp.plan(net, scheme="channel_svd", ranks=0.3)
    expected = tp.press(net, plan).state_dict()
    result = tp.press(net, plan, executor=executor).state_dict()
    assert result.keys() == expected.keys()
    assert all(torch.equal(result[name], values) for name, values in expected.items())


def test_shards_are_pressed_to_the_same_bytes_by_two_drivers(
    executor: Any, cluster: Any, tmp_path: Path
) -> None:
    net = _net()
    (tmp_path / "dense").mkdir()
    names = {"first.safetensors": ("0.", "2."), "second.safetensors": ("3.",)}
    places = {}
    for shard, prefixes in names.items():
        tensors = {key: x for key, x in net.state_dict().items() if key.startswith(prefixes)}
        save_file(tensors, tmp_path / "dense" / shard)
        places |= dict.fromkeys(tensors, shard)
    index = tmp_path / "dense" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))

    def press(name: str, executor: Any = None) -> dict[str, bytes]:
        how = {"scheme": "channel_svd", "ranks": 0.3}
        press_checkpoint(tmp_path / "dense", tmp_path / name, model=net, executor=executor, **how)
        return {path.name: path.read_bytes() for path in (tmp_path / name).glob("[!.]*.*")}

    expected = press("alone")
    assert names.keys() <= expected.keys()
    with ThreadPoolExecutor(2) as drivers, connect_cluster(cluster.scheduler_address) as other:
        results = list(drivers.map(press, ["together"] * 2, [executor, other]))
    assert press("together", executor) == results[0] | results[1] == expected


def test_choices_are_measured_as_in_one_process(executor: Any, tmp_path: Path) -> None:
    net, batches = _net(), [torch.randn(30, 40)]
    expected = tp.sensitivity(net, batches, candidates=2)
    result = tp.sensitivity(net, batches, candidates=2, journal=tmp_path, executor=executor)
    for name, choices in expected.layers.items():
        scores = [choice.score for choice in result.layers[name]]
        assert scores == pytest.approx([choice.score for choice in choices], rel=1e-4)


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


def test_the_commands_write_the_same_bytes_on_a_cluster(
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(network("lenet300100").build().state_dict(), "dense.safetensors")
    Path("sweep.yaml").write_text(SWEEP)
    model = ["--model", "lenet300100", "--weights", "dense.safetensors"]
    press = ["press", *model, "--scheme", "channel_svd", "--ranks", 0.2, "--out"]
    sweep = ["sweep", "sweep.yaml", "--processes", 1, "--out"]
    for name, more in (("alone", []), ("cluster", ["--cluster", cluster.scheduler_address])):
        assert call(monkeypatch, capsys, *press, f"{name}/pressed", *more).code == 0
        assert call(monkeypatch, capsys, *sweep, f"{name}/sweep", *more).code == 0
    for file in ("pressed/model.safetensors", "sweep/runs/*/model.tpz"):
        alone, together = (
            [path.read_bytes() for path in sorted(Path(name).glob(file))]
            for name in ("alone", "cluster")
        )
        assert alone
        assert alone == together


def test_a_job_whose_worker_is_killed_is_done_by_another(executor: Any, tmp_path: Path) -> None:
    def work(seconds: float, value: int) -> list[int]:  # sent by value: workers import no test
        time.sleep(seconds)
        return [value, os.getpid()]

    folder = JobFolder(tmp_path, {"task": "test"})
    jobs = {str(i): (0.3, i) for i in range(8)}
    results = folder.iterate(jobs, work, executor)
    name, (value, victim) = next(results)
    assert name == str(value)
    os.kill(victim, signal.SIGKILL)
    rest = dict(results)
    assert {int(name): value for name, (value, _) in rest.items()} == {
        i: i for i in range(8) if str(i) != name
    }
    assert folder.results().keys() == jobs.keys()
