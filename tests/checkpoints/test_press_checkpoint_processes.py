"""Killed in the middle, and shared by processes: the files are the same."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from tiny_checkpoints import contents, llama, save_sharded

from tensorpress.checkpoints import press_checkpoint
from tensorpress.checkpoints.press_shard import ShardPress

HOW = {"scheme": "channel_svd", "ranks": "energy:0.7"}


@pytest.fixture
def source(tmp_path):
    return save_sharded(llama(), tmp_path / "dense")


@pytest.fixture
def expected(source, tmp_path):
    press_checkpoint(source, tmp_path / "expected", **HOW)
    return contents(tmp_path / "expected")


def _start(*arguments: object) -> "multiprocessing.process.BaseProcess":
    process = multiprocessing.get_context("fork").Process(target=_work, args=arguments)
    process.start()
    return process


def _work(source: Path, out: Path, log: Path, tensors: int | None) -> None:
    """Press, telling which shards; die after so many tensors."""
    pressed, left = ShardPress._pressed, tensors

    def counted(self: ShardPress, name: str) -> object:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left = None if left is None else left - 1
        if name == self.files.files[self.files.tensors[name].file][0]:
            with log.open("a") as file:
                file.write(self.files.tensors[name].file + "\n")
        time.sleep(0.002)
        return pressed(self, name)

    ShardPress._pressed = counted  # type: ignore[method-assign, assignment]
    press_checkpoint(source, out, **HOW)


def test_killed_in_the_middle_it_goes_on_to_the_same_files(source, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["tensorpress.checkpoints.press_checkpoint"], "STALE_AFTER", 0.5)
    killed = _start(source, tmp_path / "out", tmp_path / "log", 7)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    done = [path.name for path in (tmp_path / "out").glob("model*.safetensors")]
    assert 0 < len(done) < sum(name.endswith(".safetensors") for name in expected)
    assert list((tmp_path / "out").glob(".*.tmp"))
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done}
    press_checkpoint(source, tmp_path / "out", **HOW)
    assert contents(tmp_path / "out") == expected
    assert before == {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done}


def test_stopped_by_an_error_it_goes_on_at_once(source, expected, tmp_path, monkeypatch):
    pressed, calls = ShardPress._pressed, []

    def failing(self, name):
        calls.append(name)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return pressed(self, name)

    monkeypatch.setattr(ShardPress, "_pressed", failing)
    with pytest.raises(KeyboardInterrupt):
        press_checkpoint(source, tmp_path / "out", **HOW)
    press_checkpoint(source, tmp_path / "out", **HOW)
    assert contents(tmp_path / "out") == expected


def test_two_processes_press_every_shard_once_to_the_same_files(source, expected, tmp_path):
    log = tmp_path / "log"
    workers = [_start(source, tmp_path / "out", log, None) for _ in range(2)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    shards = sorted(name for name in expected if name.endswith(".safetensors"))
    assert sorted(log.read_text().splitlines()) == shards
    assert contents(tmp_path / "out") == expected
