import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorpress.codec.container import read, write
from tensorpress.errors import CorruptFileError, DataNotFoundError, InvalidArgumentError

STREAM, PAYLOAD = b"numbers", bytes(range(40))


def seal(body: bytes, version: int = 2) -> bytes:
    checksum = zlib.crc32(bytes([version]) + body).to_bytes(4, "little")
    return b"TPZ" + bytes([version]) + checksum + body


def write_bytes(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "model.tpz"
    path.write_bytes(data)
    return path


@given(stream=st.binary(), payload=st.binary())
def test_written_values_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, stream: bytes, payload: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.tpz"
    size = write(path, stream, payload)
    content = read(str(path))
    assert (content.stream, content.payload) == (stream, payload)
    assert content.size == size == path.stat().st_size


def test_overhead_is_eight_bytes_and_a_length_where_there_is_a_payload(tmp_path: Path) -> None:
    assert write(tmp_path / "a.tpz", b"x" * 2000, b"") == 2008
    assert write(tmp_path / "a.tpz", b"x" * 100, b"y" * 2000) == 2109


@pytest.mark.parametrize("payload", [b"", PAYLOAD])
def test_every_changed_byte_is_detected(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "model.tpz"
    write(path, STREAM, payload)
    data = path.read_bytes()
    for place in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            altered = bytearray(data)
            altered[place] ^= flip
            path.write_bytes(altered)
            with pytest.raises(CorruptFileError, match=r"model\.tpz: "):
                read(path)


@pytest.mark.parametrize("payload", [b"", PAYLOAD])
def test_every_truncation_and_extension_is_detected(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "model.tpz"
    write(path, STREAM, payload)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CorruptFileError):
            read(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(CorruptFileError, match="checksum"):
        read(path)


def test_other_files_and_other_versions_have_other_messages(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"not a \.tpz file"):
        read(write_bytes(tmp_path, b"PK\x03\x04 a zip archive"))
    with pytest.raises(CorruptFileError, match=r"not a \.tpz file"):
        read(write_bytes(tmp_path, b""))
    for version in (1, 3, 0x80 | 3):
        with pytest.raises(CorruptFileError, match=f"version {version & 127}, but this .* reads 2"):
            read(write_bytes(tmp_path, seal(b"\x02\x80\x00", version)))


@given(body=st.binary(max_size=80), version=st.sampled_from([2, 2 | 128]))
def test_any_sealed_body_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, version: int
) -> None:
    path = write_bytes(tmp_path_factory.getbasetemp(), seal(body, version))
    try:
        content = read(path)
    except CorruptFileError:
        return
    assert content.size == len(body) + 8


@pytest.mark.parametrize("body", [b"", b"\x05ab", b"\xff\xff\xff\xff\x7f", b"\xff" * 12])
def test_wrong_lengths_are_refused(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(CorruptFileError, match=r"end early|exceeds 64 bits"):
        read(write_bytes(tmp_path, seal(body, 2 | 128)))


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"no \.tpz file at .*absent\.tpz"):
        read(tmp_path / "absent.tpz")
    with pytest.raises(DataNotFoundError, match=r"is a folder: expected a \.tpz file"):
        read(tmp_path)


def test_writing_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tpz"
    write(path, b"first", b"")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InvalidArgumentError, match=r"a\.tpz cannot be written: No space left"):
        write(path, b"second", b"")
    assert read(path).stream == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["a.tpz"]


def test_the_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        write(tmp_path / "no" / "a.tpz", b"", b"")
