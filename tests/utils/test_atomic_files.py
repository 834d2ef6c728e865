"""Files are complete or not there at all."""

import os
import platform
import subprocess
import sys

import pytest

from tensorpress.errors import InvalidArgumentError
from tensorpress.utils.atomic_files import remove_leftovers, replace_file, write_atomically


def test_content_is_replaced_and_nothing_else_stays(tmp_path):
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_failure_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write_half():
        with replace_file(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_reported_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(InvalidArgumentError, match=r"a\.bin cannot be written: No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_reported(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"a\.bin cannot be written: No such file"):
        write_atomically(tmp_path / "no" / "a.bin", b"")


WRITE = """
import sys
from tensorpress.utils.atomic_files import replace_file
with replace_file(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print(flush=True)
    sys.stdin.read()
"""


def test_only_temporary_files_of_killed_processes_are_leftovers(tmp_path):
    path = tmp_path / "a.[x].bin"
    command = [sys.executable, "-c", WRITE, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        [temporary] = tmp_path.iterdir()
        with replace_file(tmp_path / "a.[x].bin.json") as other:
            other.write_bytes(b"")
            remove_leftovers(path)
            assert temporary.exists()
            writer.kill()
            writer.wait()
            remove_leftovers(path)
            assert not temporary.exists()
            assert other.exists()


def test_temporary_files_of_this_process_and_of_other_machines_stay(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    with replace_file(path) as temporary:
        temporary.write_bytes(b"")
        remove_leftovers(path)
        assert temporary.exists()
        abroad = temporary.with_name(
            temporary.name.replace(f"{platform.node()}@{os.getpid()}", "elsewhere@99999999")
        )
        abroad.write_bytes(b"")
        remove_leftovers(path)
        assert abroad.exists()
        monkeypatch.setattr(platform, "node", lambda: "elsewhere")
        remove_leftovers(path)
        assert not abroad.exists()
