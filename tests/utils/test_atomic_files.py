"""Files are complete or not there at all."""

import errno
import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tensorpress.errors import InvalidArgumentError
from tensorpress.utils.atomic_files import (
    _prefix,
    check_writable,
    make_folder,
    remove_leftovers,
    replace_file,
    write_atomically,
)


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


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path):
    dead = tmp_path / f".a.bin.0123abcd.{platform.node()}@99999999.tmp"
    dead.write_bytes(b"half")
    write_atomically(tmp_path / "b.bin", b"another file")
    assert dead.exists()
    write_atomically(tmp_path / "a.bin", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "b.bin"]


def test_leftovers_of_a_folder_are_those_of_all_files_in_it(tmp_path):
    (tmp_path / "a" / ".b").mkdir(parents=True)
    leftovers = [tmp_path / ".x.json", tmp_path / "a" / ".b" / ".0003.safetensors"]
    for path in leftovers:
        dead = path.with_name(f"{path.name}.0123abcd.{platform.node()}@99999999.tmp")
        dead.write_bytes(b"half")
    others = [tmp_path / ".mine.tmp", tmp_path / f".x.json.short.{platform.node()}@99999999.tmp"]
    for path in others:
        path.write_bytes(b"")
    with replace_file(tmp_path / "a" / "y.json") as temporary:
        temporary.write_bytes(b"")
        remove_leftovers(tmp_path)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert sorted(files) == sorted([*others, temporary])
    remove_leftovers(tmp_path / "no" / "folder")


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


def make_device(path):
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


@pytest.mark.parametrize(
    ("make", "kind"),
    [(os.mkfifo, "a pipe"), (make_device, "a device"), (os.mkdir, "a folder")],
    ids=["pipe", "device", "folder"],
)
def test_what_is_no_regular_file_stays(tmp_path, make, kind):
    path = tmp_path / "a"
    make(path)
    before = path.lstat().st_mode
    link = tmp_path / "link"
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises(InvalidArgumentError, match=f"{name} cannot be written: it is {kind}"):
            write_atomically(name, b"new")
    assert path.lstat().st_mode == before
    assert sorted(tmp_path.iterdir()) == [path, link]


def test_the_file_behind_a_link_is_replaced_and_keeps_its_mode(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    link, far = tmp_path / "a.bin", tmp_path / "b.bin"
    far.symlink_to(folder / "a.bin")
    link.symlink_to(far)
    write_atomically(link, b"through a dangling link")
    (folder / "a.bin").chmod(0o640)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert far.is_symlink()
    assert (folder / "a.bin").read_bytes() == b"new"
    assert stat.S_IMODE((folder / "a.bin").stat().st_mode) == 0o640
    assert [file.name for file in folder.iterdir()] == ["a.bin"]


def test_a_loop_of_links_is_no_file(tmp_path):
    link = tmp_path / "a.bin"
    link.symlink_to(link)
    with pytest.raises(InvalidArgumentError, match=r"a\.bin cannot be written"):
        write_atomically(link, b"new")
    assert link.is_symlink()


@pytest.mark.parametrize("length", [121, 241, 255])
def test_long_names_are_written_and_cleaned_up(tmp_path, length):
    path = tmp_path / ("a" * length)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    leftover = tmp_path / f"{_prefix(path)}0123abcd.{platform.node()}@99999999.tmp"
    leftover.write_bytes(b"half")
    remove_leftovers(path)
    assert not leftover.exists()


@pytest.mark.parametrize("name", ["a" * 256, "a\0b", "file/a"])
def test_names_that_no_file_can_have_are_refused(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        check_writable(tmp_path / name)


def test_an_error_of_cleaning_up_does_not_hide_the_first_one(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    def read_only(path, missing_ok=False):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(InvalidArgumentError, match="No space left"):
        write_atomically(tmp_path / "a.bin", b"new")


def test_a_folder_that_cannot_be_written_in_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write in any
    with pytest.raises(InvalidArgumentError, match="its folder is read-only"):
        check_writable(tmp_path / "a.bin")


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_folder(tmp_path / "a" / "b").is_dir()
    make_folder(tmp_path / "a" / "b")  # it is there
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgumentError, match=r"file cannot be created: File exists"):
        make_folder(tmp_path / "file")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(
        InvalidArgumentError, match="new cannot be created: No space left on device"
    ):
        make_folder(tmp_path / "new")
