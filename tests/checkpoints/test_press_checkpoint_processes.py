"""Killed in the middle, and on executors: the files are the same."""

import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_checkpoints import contents, interrupt_after_shards, llama, save_sharded

from tensorpress.checkpoints import press_checkpoint
from tensorpress.checkpoints.press_shard import ShardPress
from tensorpress.utils.atomic_files import replace_file

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


def _work(source: Path, out: Path, tensors: int) -> None:
    """Press, and die after so many tensors."""
    pressed, left = ShardPress._press_tensor, tensors

    def counted(self: ShardPress, name: str) -> object:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return pressed(self, name)

    ShardPress._press_tensor = counted  # type: ignore[method-assign, assignment]
    press_checkpoint(source, out, **HOW)


def test_killed_in_the_middle_it_goes_on_to_the_same_files(source, expected, tmp_path):
    killed = _start(source, tmp_path / "out", 7)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    done = [path.name for path in (tmp_path / "out").glob("model*.safetensors")]
    assert 0 < len(done) < sum(name.endswith(".safetensors") for name in expected)
    assert list((tmp_path / "out").glob(".*.tmp"))
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done}
    press_checkpoint(source, tmp_path / "out", **HOW)
    assert contents(tmp_path / "out") == expected
    assert before == {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done}


def test_what_another_process_is_writing_stays(source, expected, tmp_path):
    shard = next(name for name in expected if name.endswith(".safetensors"))
    (tmp_path / "out" / ".press").mkdir(parents=True)
    with replace_file(tmp_path / "out" / shard) as temporary:
        temporary.write_bytes(expected[shard])
        press_checkpoint(source, tmp_path / "out", **HOW)
        assert temporary.exists()
    assert contents(tmp_path / "out") == expected


def test_stopped_by_an_error_it_goes_on_at_once(source, expected, tmp_path, monkeypatch):
    pressed, calls = ShardPress._press_tensor, []

    def failing(self, name):
        calls.append(name)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return pressed(self, name)

    monkeypatch.setattr(ShardPress, "_press_tensor", failing)
    with pytest.raises(KeyboardInterrupt):
        press_checkpoint(source, tmp_path / "out", **HOW)
    press_checkpoint(source, tmp_path / "out", **HOW)
    assert contents(tmp_path / "out") == expected


def test_several_processes_write_the_same_files(source, expected, tmp_path):
    press_checkpoint(source, tmp_path / "out", processes=2, **HOW)
    assert contents(tmp_path / "out") == expected


def test_threads_of_an_executor_write_the_same_files(source, expected, tmp_path):
    with ThreadPoolExecutor(3) as executor:
        press_checkpoint(source, tmp_path / "out", executor=executor, **HOW)
    assert contents(tmp_path / "out") == expected


def test_a_damaged_result_is_pressed_again(source, expected, tmp_path):
    interrupt_after_shards(source, tmp_path / "out", **HOW)
    path = next((tmp_path / "out").glob(".press/shards/model*.json"))
    path.write_text("{")
    press_checkpoint(source, tmp_path / "out", **HOW)
    assert contents(tmp_path / "out") == expected
