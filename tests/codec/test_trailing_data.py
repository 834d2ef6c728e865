"""Nothing may follow what a decoder reads, zeros included."""

import zlib
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from tpz_models import custom_model, press_network, save_model

import tensorpress as tp
from tensorpress.codec import container, named_header
from tensorpress.codec.adaptive_coder import Stream
from tensorpress.codec.bit_io import BitReader, BitWriter
from tensorpress.codec.huffman import HuffmanCode
from tensorpress.codec.static_coder import decode_huffman, decode_range, encode_huffman
from tensorpress.errors import CorruptFileError

EXTRA = [b"\0", b"\x01", b"\x80", b"\xff", b"\0\0", b"\0" * 4, b"\0" * 9, b"\xff" * 9]


@pytest.mark.parametrize("extra", EXTRA, ids=bytes.hex)
@pytest.mark.parametrize("width", [0, 1, 5, 8, 16, 21])
def test_of_bits(width: int, extra: bytes) -> None:
    writer = BitWriter()
    writer.bits(1 if width else 0, width)
    data = writer.to_bytes() if width else b""
    for end, fine in ((b"", True), (extra, False)):
        reader = BitReader(data + end)
        reader.bits(width)
        if fine:
            reader.finish()
        else:
            with pytest.raises(CorruptFileError, match="data after the end"):
                reader.finish()


def test_the_bits_that_fill_the_last_byte_are_zeros() -> None:
    for place in range(5):
        reader = BitReader(bytes([0b101_00000 | 1 << place]))
        reader.bits(3)
        with pytest.raises(CorruptFileError, match="data after the end"):
            reader.finish()


@given(st.lists(st.integers(0, 300), max_size=30), st.binary(min_size=1, max_size=9))
def test_of_adaptive_streams(numbers: list[int], extra: bytes) -> None:
    writer = Stream()
    for number in numbers:
        writer.number("rank", number)
    data = writer.finish()
    for stored, fine in ((data, True), (data + extra, False), (data[:-1], not data)):
        reader = Stream(stored)
        read = [reader.number("rank") for _ in numbers]
        if fine:
            assert read == numbers
            reader.check_end()
        elif read == numbers:  # or what was changed shows
            with pytest.raises(CorruptFileError, match=r"end early|after the coded values"):
                reader.check_end()


def test_of_huffman_codes() -> None:
    symbols = np.array([0, 0, -1, 2, 0, 1], np.int32)
    for arrays in ([symbols], [np.zeros(5, np.int32)]):
        writer = BitWriter()
        data = encode_huffman(writer, [arrays])
        groups = [(3, [len(array) for array in arrays])]
        [[result]] = decode_huffman(BitReader(writer.to_bytes()), data, groups)
        assert result.symbols.tolist() == arrays[0].tolist()
        for extra in EXTRA:
            with pytest.raises(CorruptFileError, match="after the coded values"):
                decode_huffman(BitReader(writer.to_bytes()), data + extra, groups)
    code = HuffmanCode.from_symbols(symbols)
    data = code.encode(symbols)
    with pytest.raises(CorruptFileError, match="last byte"):
        code.decode(data[:-1] + bytes([data[-1] | 1]), len(symbols))


@pytest.mark.parametrize("extra", EXTRA, ids=bytes.hex)
def test_of_range_codes_of_nothing(extra: bytes) -> None:
    assert decode_range(b"", [], []) == []
    with pytest.raises(CorruptFileError, match="after the coded values"):
        decode_range(extra, [], [])


@pytest.mark.parametrize("extra", EXTRA, ids=bytes.hex)
def test_of_headers(extra: bytes) -> None:
    header = [[], [["0.bias", [20], "float32"]]]
    stored = named_header.compress(header)
    assert named_header.unpack("a.tpz", stored).tensors[0].name == "0.bias"
    with pytest.raises(CorruptFileError, match="header"):
        named_header.unpack("a.tpz", stored + extra)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    inside = deflate.compress(msgpack.packb(header) + extra) + deflate.flush()
    with pytest.raises(CorruptFileError, match="header"):
        named_header.unpack("a.tpz", inside)


@pytest.fixture(scope="module")
def tabled() -> nn.Module:
    """A model with values for which a probability table is worth its bits."""
    return nn.ParameterList([torch.tensor([-4096.0, 4096.0]).repeat(2500), torch.randn(3)])


@pytest.mark.parametrize("extra", EXTRA, ids=bytes.hex)
@pytest.mark.parametrize("coder", ["range", "huffman"])
@pytest.mark.parametrize("part", ["stream", "payload"])
def test_of_files(tmp_path: Path, tabled: nn.Module, part: str, coder: str, extra: bytes) -> None:
    """Also where the checksum is right."""
    torch.manual_seed(0)
    cases = [
        (custom_model(), custom_model(), {}),
        (press_network("lenet300100", budget="params=3000"), None, {"network": "lenet300100"}),
    ]
    if coder == "huffman" or part == "stream":
        cases.append((tabled, tabled, {"quantizer": tp.UniformQuantizer(8192, 4096.0)}))
    for model, dense, options in cases:
        path = save_model(model, tmp_path, coder=coder, **options)
        parts = container.read(path)
        container.write(path, parts.stream, parts.payload)
        tp.load(path, dense)
        ends = {"stream": (extra, b""), "payload": (b"", extra)}[part]
        container.write(path, parts.stream + ends[0], parts.payload + ends[1])
        for read in (lambda p=path, d=dense: tp.load(p, d), lambda p=path: tp.inspect(p)):
            with pytest.raises(CorruptFileError, match=r"model\.tpz: "):
                read()


@pytest.mark.parametrize("coder", ["range", "huffman"])
def test_of_tables_within_a_file(
    tmp_path: Path, tabled: nn.Module, coder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Longer(BitWriter):
        def to_bytes(self) -> bytes:
            return super().to_bytes() + b"\0"

    monkeypatch.setattr("tensorpress.codec.encode_tensors.BitWriter", Longer)
    path = save_model(tabled, tmp_path, quantizer=tp.UniformQuantizer(8192, 4096.0), coder=coder)
    with pytest.raises(CorruptFileError, match=r"model\.tpz: there are data after the end"):
        tp.inspect(path)
