import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from tensorpress.errors import CorruptFileError, InvalidArgumentError
from tensorpress.utils.shared_jobs import JobFolder

SUBJECT = {"task": "test", "seed": 1}
JOBS = [f"job {i}" for i in range(20)]


def _work(folder: Path, log: Path, seconds: float, stale_after: float = 60.0) -> None:
    def do(name: str) -> int:
        with log.open("a") as file:
            file.write(f"{name}\n")
        time.sleep(seconds)
        return int(name.split()[1])

    JobFolder(folder, SUBJECT, stale_after=stale_after).run(JOBS, do, title="test")


def _process(*arguments: object) -> "multiprocessing.process.BaseProcess":
    process = multiprocessing.get_context("fork").Process(target=_work, args=arguments)
    process.start()
    return process


def test_results_are_in_the_order_of_the_jobs_and_a_name_twice_is_one_job(tmp_path):
    folder, calls = JobFolder(tmp_path, SUBJECT), []

    def do(name: str) -> int:
        calls.append(name)
        return len(name)

    assert list(folder.run(["cc", "a", "cc"], do, title="t").items()) == [("cc", 2), ("a", 1)]
    assert calls == ["cc", "a"]


def test_finished_jobs_are_not_done_again(tmp_path):
    JobFolder(tmp_path, SUBJECT).run(JOBS[:3], str.upper, title="t")
    done = JobFolder(tmp_path, SUBJECT).run(JOBS[:4], lambda name: "new", title="t")
    assert list(done.values()) == ["JOB 0", "JOB 1", "JOB 2", "new"]
    assert JobFolder(tmp_path, SUBJECT).results() == done


def test_any_name_makes_its_own_file_inside_the_folder(tmp_path):
    names = ["../a", "a", "a/b", "a b", "a?b", "é" * 300, ".", "", "subject", "CON", "A"]
    folder = JobFolder(tmp_path / "jobs", SUBJECT)
    folder.run(names, lambda name: name, title="t")
    assert folder.results() == {name: name for name in names}
    assert [path.name for path in tmp_path.iterdir()] == ["jobs"]


def test_two_processes_do_every_job_once(tmp_path):
    log = tmp_path / "log"
    workers = [_process(tmp_path / "jobs", log, 0.01) for _ in range(2)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted(log.read_text().splitlines()) == sorted(JOBS)
    results = JobFolder(tmp_path / "jobs", SUBJECT).results()
    assert results == {name: int(name.split()[1]) for name in JOBS}


def test_a_job_whose_process_was_killed_is_taken_over(tmp_path):
    log = tmp_path / "log"
    killed = _process(tmp_path / "jobs", log, 60.0)
    while not log.exists():
        time.sleep(0.01)
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert JobFolder(tmp_path / "jobs", SUBJECT).results() == {}
    _work(tmp_path / "jobs", log, 0.0, stale_after=0.3)
    assert len(JobFolder(tmp_path / "jobs", SUBJECT).results()) == len(JOBS)
    assert not list((tmp_path / "jobs").glob("*.claim"))


def test_a_slow_job_that_is_alive_is_waited_for(tmp_path):
    log = tmp_path / "log"

    def slow() -> None:
        folder = JobFolder(tmp_path / "jobs", SUBJECT, stale_after=0.3)
        folder.run(["slow"], lambda name: (log.touch(), time.sleep(1.0), "first")[-1], title="t")

    worker = multiprocessing.get_context("fork").Process(target=slow)
    worker.start()
    while not log.exists():
        time.sleep(0.01)
    folder = JobFolder(tmp_path / "jobs", SUBJECT, stale_after=0.3)
    assert folder.run(["slow"], lambda name: "second", title="t") == {"slow": "first"}
    worker.join()


def test_a_job_that_raises_is_free_again(tmp_path):
    folder = JobFolder(tmp_path, SUBJECT)
    with pytest.raises(ZeroDivisionError):
        folder.run(["a"], lambda name: 1 // 0, title="t")
    assert folder.run(["a"], len, title="t") == {"a": 1}


def test_a_folder_about_something_else_is_an_error_that_names_what_differs(tmp_path):
    JobFolder(tmp_path, SUBJECT)
    with pytest.raises(InvalidArgumentError, match="'seed' is 1 there and 2 here"):
        JobFolder(tmp_path, {**SUBJECT, "seed": 2})
    with pytest.raises(InvalidArgumentError, match="'more' is None there"):
        JobFolder(tmp_path, {**SUBJECT, "more": 2})


def test_a_result_of_another_subject_is_not_taken_for_ours(tmp_path):
    JobFolder(tmp_path / "a", SUBJECT).run(["x"], len, title="t")
    other = JobFolder(tmp_path / "b", {"task": "other"})
    [path] = (tmp_path / "a").glob("x*.json")
    (tmp_path / "b" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InvalidArgumentError, match="about something else"):
        other.results()


@pytest.mark.parametrize("content", ['{"job": "a", "resu', "", "[1]", '{"job": "a"}', "\xff"])
def test_a_damaged_result_is_named(tmp_path, content):
    folder = JobFolder(tmp_path, SUBJECT)
    folder.run(["a"], len, title="t")
    [path] = [path for path in tmp_path.glob("*.json") if path.name != "subject.json"]
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(CorruptFileError, match=path.name):
        folder.results()
    with pytest.raises(CorruptFileError, match=path.name):
        folder.run(["a"], len, title="t")


def test_a_damaged_subject_is_named(tmp_path):
    (tmp_path / "subject.json").write_text("{")
    with pytest.raises(CorruptFileError, match=r"subject\.json"):
        JobFolder(tmp_path, SUBJECT)


@pytest.mark.parametrize("result", [float("nan"), object(), {1, 2}])
def test_a_result_that_is_no_json_names_its_job(tmp_path, result):
    folder = JobFolder(tmp_path, SUBJECT)
    with pytest.raises(InvalidArgumentError, match="'a'"):
        folder.run(["a"], lambda name: result, title="t")
    assert folder.results() == {}


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        JobFolder(tmp_path / "file" / "jobs", SUBJECT)


def test_what_a_job_returns_is_what_a_later_run_reads(tmp_path):
    folder = JobFolder(tmp_path, SUBJECT)
    first = folder.run(["a"], lambda name: {"pair": (1, 2.5)}, title="t")
    assert first == folder.results() == {"a": {"pair": [1, 2.5]}}
    [path] = tmp_path.glob("a*.json")
    assert json.loads(path.read_text())["job"] == "a"
