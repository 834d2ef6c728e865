import os
import zlib
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorpress.codec import container
from tensorpress.codec.container import MAX_HEADER_BYTES, read, write
from tensorpress.errors import CorruptFileError, DataNotFoundError, InvalidArgumentError

HEADER = {"network": "lenet5", "ranks": [3, 4, 5], "bound": 3.0, "on": True, "none": None}
SECTIONS = [b"spec", b"", bytes(range(40))]

headers = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary()
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


def seal(body: bytes, version: int = 1) -> bytes:
    return b"TPZ" + bytes([version]) + zlib.crc32(body).to_bytes(4, "little") + body


def stored(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "model.tpz"
    path.write_bytes(data)
    return path


@given(header=headers, sections=st.lists(st.binary()))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, header: Any, sections: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.tpz"
    size = write(path, header, sections)
    again = read(str(path))
    assert again.header == header
    assert again.sections == tuple(sections)
    assert again.size == size == path.stat().st_size
    assert 0 < again.header_bytes <= len(msgpack.packb(header))


def test_overhead_is_a_dozen_bytes(tmp_path: Path) -> None:
    size = write(tmp_path / "a.tpz", {}, [b"x" * 20, b"y" * 2000])
    assert size == 2020 + 14


def test_long_headers_are_compressed(tmp_path: Path) -> None:
    header = {"layers": [{"scheme": "tucker2", "ranks": [i, i]} for i in range(100)]}
    write(tmp_path / "a.tpz", header, [])
    again = read(tmp_path / "a.tpz")
    assert again.header == header
    assert again.header_bytes < len(msgpack.packb(header)) / 4


def test_every_changed_byte_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "model.tpz"
    write(path, HEADER, SECTIONS)
    data = path.read_bytes()
    for place in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            altered = bytearray(data)
            altered[place] ^= flip
            path.write_bytes(altered)
            with pytest.raises(CorruptFileError, match=r"model\.tpz: "):
                read(path)


def test_every_truncation_and_extension_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "model.tpz"
    write(path, HEADER, SECTIONS)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CorruptFileError):
            read(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(CorruptFileError, match="checksum"):
        read(path)


def test_other_files_and_newer_versions_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"not a \.tpz file"):
        read(stored(tmp_path, b"PK\x03\x04 a zip archive"))
    with pytest.raises(CorruptFileError, match=r"not a \.tpz file"):
        read(stored(tmp_path, b""))
    with pytest.raises(CorruptFileError, match="version 2, this TensorPress reads up to 1"):
        read(stored(tmp_path, seal(b"\x02\x80\x00", version=2)))


@given(body=st.binary(max_size=80))
def test_any_sealed_body_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, body: bytes
) -> None:
    path = stored(tmp_path_factory.getbasetemp(), seal(body))
    try:
        again = read(path)
    except CorruptFileError:
        return
    assert again.size == len(body) + 8


def raw_deflate(data: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(data) + deflate.flush()


BOMB = raw_deflate(bytes(MAX_HEADER_BYTES + 1))


@pytest.mark.parametrize(
    ("header", "compressed", "reason"),
    [
        (b"\xc1", False, "damaged"),
        (b"\x80\x80", False, "damaged"),
        (b"\xdd\xff\xff\xff\xff", False, "damaged"),
        (b"\x91" * 5000, False, "damaged"),
        (b"\x81\x01\x02", False, "damaged"),
        (b"\xa2\xff\xff", False, "damaged"),
        (b"\xd4\x05\x00", False, "extension type, 5"),
        (b"\xff\xff\xff", True, "damaged"),
        (raw_deflate(b"\x80")[:-1], True, "damaged"),
        (raw_deflate(b"\x80") + b"\0", True, "damaged"),
        (BOMB, True, "exceeds"),
    ],
    ids=str,
)
def test_hostile_headers_are_refused(
    tmp_path: Path, header: bytes, compressed: bool, reason: str
) -> None:
    length = container.BitWriter()
    length.varint(2 * len(header) + compressed)
    with pytest.raises(CorruptFileError, match=reason):
        read(stored(tmp_path, seal(length.to_bytes() + header + b"\0")))


@pytest.mark.parametrize(
    "after", [b"", b"\x01", b"\x01\x05ab", b"\xff\xff\xff\xff\x7f", b"\x00rest", b"\x01\x01abc"]
)
def test_wrong_lengths_are_refused(tmp_path: Path, after: bytes) -> None:
    with pytest.raises(CorruptFileError, match=r"end early|after the end"):
        read(stored(tmp_path, seal(b"\x02\x80" + after)))


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"absent\.tpz: no such file"):
        read(tmp_path / "absent.tpz")
    with pytest.raises(DataNotFoundError, match="cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize("header", [{"a": object()}, {1: 2}, 2**64, {"a": {1, 2}}, "\ud800"])
def test_headers_that_cannot_be_read_back_are_not_written(tmp_path: Path, header: Any) -> None:
    path = tmp_path / "a.tpz"
    path.write_bytes(b"before")
    with pytest.raises(InvalidArgumentError, match="header cannot be stored"):
        write(path, header, [])
    assert path.read_bytes() == b"before"


def test_writing_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tpz"
    write(path, {"n": 1}, [])

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InvalidArgumentError, match=r"a\.tpz cannot be written: No space left"):
        write(path, {"n": 2}, [])
    assert read(path).header == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.tpz"]


def test_the_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        write(tmp_path / "no" / "a.tpz", {}, [])
