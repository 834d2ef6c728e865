import json
import logging

import pytest

from tensorpress.errors import CorruptFileError, InvalidArgumentError
from tensorpress.utils.executors import open_executor
from tensorpress.utils.jobs import JobFolder

SUBJECT = {"task": "test", "seed": 1}
JOBS = [f"job {i}" for i in range(20)]


def _number(name: str) -> int:
    return int(name.split()[1])


def _named(*names: str) -> dict[str, tuple[str]]:
    return {name: (name,) for name in names}


def test_results_are_in_the_order_of_the_jobs(tmp_path):
    folder, calls = JobFolder(tmp_path, SUBJECT), []

    def do(name: str) -> int:
        calls.append(name)
        return len(name)

    assert list(folder.run(_named("cc", "a"), do, title="t").items()) == [("cc", 2), ("a", 1)]
    assert calls == ["cc", "a"]


def test_finished_jobs_are_not_done_again(tmp_path):
    JobFolder(tmp_path, SUBJECT).run(_named(*JOBS[:3]), str.upper, title="t")
    done = JobFolder(tmp_path, SUBJECT).run(_named(*JOBS[:4]), lambda name: "new", title="t")
    assert list(done.values()) == ["JOB 0", "JOB 1", "JOB 2", "new"]
    assert JobFolder(tmp_path, SUBJECT).results() == done


def test_any_name_makes_its_own_file_inside_the_folder(tmp_path):
    names = ["../a", "a", "a/b", "a b", "a?b", "é" * 300, ".", "", "subject", "CON", "A"]
    folder = JobFolder(tmp_path / "jobs", SUBJECT)
    folder.run(_named(*names), lambda name: name, title="t")
    assert folder.results() == {name: name for name in names}
    assert [path.name for path in tmp_path.iterdir()] == ["jobs"]


def test_a_pool_gives_the_results_of_one_process(tmp_path):
    with open_executor(2) as executor:
        results = JobFolder(tmp_path, SUBJECT).run(
            _named(*JOBS), _number, title="t", executor=executor
        )
    assert results == JobFolder(tmp_path, SUBJECT).results() == {job: _number(job) for job in JOBS}


def test_what_was_finished_before_an_error_is_kept(tmp_path):
    folder = JobFolder(tmp_path, SUBJECT)
    with pytest.raises(IndexError):
        folder.run(_named("job 1", "job 2", "wrong", "job 3"), _number, title="t")
    assert folder.results() == {"job 1": 1, "job 2": 2}


def test_a_job_that_raises_is_free_again(tmp_path):
    folder = JobFolder(tmp_path, SUBJECT)
    with pytest.raises(ZeroDivisionError):
        folder.run(_named("a"), lambda name: 1 // 0, title="t")
    assert folder.run(_named("a"), len, title="t") == {"a": 1}


def test_a_folder_about_something_else_is_an_error_that_names_what_differs(tmp_path):
    JobFolder(tmp_path, SUBJECT)
    with pytest.raises(InvalidArgumentError, match="'seed' is 1 there and 2 here"):
        JobFolder(tmp_path, {**SUBJECT, "seed": 2})
    with pytest.raises(InvalidArgumentError, match="'more' is None there"):
        JobFolder(tmp_path, {**SUBJECT, "more": 2})


def test_a_result_of_another_subject_is_not_taken_for_ours(tmp_path):
    JobFolder(tmp_path / "a", SUBJECT).run(_named("x"), len, title="t")
    other = JobFolder(tmp_path / "b", {"task": "other"})
    [path] = (tmp_path / "a").glob("x*.json")
    (tmp_path / "b" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InvalidArgumentError, match="another subject"):
        other.results()


@pytest.mark.parametrize("content", [
    '{"job": "a", "resu', "", "[1]", '{"job": "a"}', "\xff",
    '{"job": [], "about": "", "result": 1}',
])  # fmt: skip
def test_a_damaged_result_is_done_again(tmp_path, content, caplog):
    folder = JobFolder(tmp_path, SUBJECT)
    folder.run(_named("a"), len, title="t")
    [path] = [path for path in tmp_path.glob("*.json") if path.name != "subject.json"]
    path.write_bytes(content.encode("latin-1"))
    with caplog.at_level(logging.WARNING, logger="tensorpress.jobs"):
        assert folder.results() == {}
    assert path.name in caplog.text
    assert folder.run(_named("a"), len, title="t") == folder.results() == {"a": 1}


def test_a_damaged_subject_is_named(tmp_path):
    (tmp_path / "subject.json").write_text("{")
    with pytest.raises(CorruptFileError, match=r"subject\.json"):
        JobFolder(tmp_path, SUBJECT)


@pytest.mark.parametrize("result", [float("nan"), object(), {1, 2}])
def test_a_result_that_is_no_json_names_its_job(tmp_path, result):
    folder = JobFolder(tmp_path, SUBJECT)
    with pytest.raises(InvalidArgumentError, match="'a'"):
        folder.run(_named("a"), lambda name: result, title="t")
    assert folder.results() == {}


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        JobFolder(tmp_path / "file" / "jobs", SUBJECT)


def test_what_a_job_returns_is_what_a_later_run_reads(tmp_path):
    folder = JobFolder(tmp_path, SUBJECT)
    first = folder.run(_named("a"), lambda name: {"pair": (1, 2.5)}, title="t")
    assert first == folder.results() == {"a": {"pair": [1, 2.5]}}
    [path] = tmp_path.glob("a*.json")
    assert json.loads(path.read_text())["job"] == "a"
