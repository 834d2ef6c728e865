"""Files with a valid checksum that were made to do harm."""

import sys
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tpz_models import own, pressed, saved

import tensorpress as tp
from tensorpress.codec import container
from tensorpress.errors import CorruptFileError, InvalidArgumentError, ModelMismatchError

REFUSED = (CorruptFileError, ModelMismatchError)


@contextmanager
def cheaply(megabytes: int = 100) -> Iterator[None]:
    start = time.perf_counter()
    tracemalloc.start()
    try:
        yield
        assert time.perf_counter() - start < 20  # not a hang, on any machine
        assert tracemalloc.get_traced_memory()[1] < megabytes << 20
    finally:
        tracemalloc.stop()


def assert_refused(path: Path, header: Any, sections: Any, model: nn.Module | None = None) -> None:
    container.write(path, header, sections)
    for read in (lambda: tp.load(path, model), lambda: tp.inspect(path)):
        with cheaply(), pytest.raises(REFUSED, match=r"hostile\.tpz"):
            read()


def test_every_altered_byte_and_every_truncation_is_found(tmp_path: Path) -> None:
    model = pressed("lenet5", budget="params=900")
    path = saved(model, tmp_path, network="lenet5", quantizer=tp.UniformQuantizer(16, 3.0))
    data = path.read_bytes()
    assert len(data) < 400
    for place in range(len(data)):
        altered = bytearray(data)
        altered[place] ^= 1 << (place % 8)
        path.write_bytes(altered)
        with pytest.raises(CorruptFileError, match=r"model\.tpz"):
            tp.load(path)
        path.write_bytes(data[:place])
        with pytest.raises(CorruptFileError, match=r"model\.tpz"):
            tp.load(path)
    path.write_bytes(data)
    tp.load(path)


HUGE = (1 << 31) - 1
IP2 = [20, 15, 10, 10]
ZOO_HEADERS = {
    "not a list": {"network": "lenet300100"},
    "empty": [],
    "too long": ["lenet300100", [], 0, 0],
    "unknown network": ["lenet9", [], 0],
    "module as network": ["os.system", [], 0],
    "class as network": ["__class__", [], 0],
    "network is a number": [7, [], 0],
    "network is bytes": [b"lenet5", [], 0],
    "layers are a number": ["lenet300100", 5, 0],
    "layer is a number": ["lenet300100", [5], 0],
    "layer is empty": ["lenet300100", [[]], 0],
    "layer is too long": ["lenet300100", [[1, IP2, 3, 0, 0]], 0],
    "layer number negative": ["lenet300100", [[-1, IP2, 3]], 0],
    "layer number too large": ["lenet300100", [[3, IP2, 3]], 0],
    "layer number huge": ["lenet300100", [[1 << 62, IP2, 3]], 0],
    "layer number true": ["lenet300100", [[True, IP2, 3]], 0],
    "layer by name": ["lenet300100", [["ip2", IP2, 3]], 0],
    "layer twice": ["lenet300100", [[1, IP2, 3], [1, IP2, 3]], 0],
    "no modes": ["lenet300100", [[1, [], 3]], 0],
    "modes of another weight": ["lenet300100", [[1, [20, 15], 3]], 0],
    "modes zero": ["lenet300100", [[1, [0, 15], 3]], 0],
    "modes negative": ["lenet300100", [[1, [-300, -100], 3]], 0],
    "modes huge": ["lenet300100", [[1, [HUGE] * 16, 3]], 0],
    "modes beyond 31 bits": ["lenet300100", [[1, [1 << 40], 3]], 0],
    "modes without end": ["lenet300100", [[1, [1] * 100_000, 3]], 0],
    "modes a string": ["lenet300100", [[1, "original", 3]], 0],
    "modes floats": ["lenet300100", [[1, [300.0, 100.0], 3]], 0],
    "ranks zero": ["lenet300100", [[1, IP2, 0]], 0],
    "ranks negative": ["lenet300100", [[1, IP2, -5]], 0],
    "ranks huge": ["lenet300100", [[1, IP2, HUGE]], 0],
    "ranks large": ["lenet300100", [[1, IP2, 100]], 0],
    "ranks too few": ["lenet300100", [[1, IP2, [3, 3]]], 0],
    "ranks none": ["lenet300100", [[1, IP2, None]], 0],
    "diagonal of unequal ranks": ["lenet300100", [[1, IP2, [3, 3, 3, 4], 2]], 0],
    "diagonal huge": ["lenet300100", [[1, IP2, HUGE, 2]], 0],
    "core unknown": ["lenet300100", [[1, IP2, 3, 3]], 0],
    "core negative": ["lenet300100", [[1, IP2, 3, -1]], 0],
    "core float": ["lenet300100", [[1, IP2, 3, 1.0]], 0],
    "core a list": ["lenet300100", [[1, IP2, 3, [1]]], 0],
    "shared cores of two shapes": [
        "lenet300100", [[1, IP2, 3, 1], [2, [10, 10, 10, 1], [3, 3, 3, 2], 1]], 0,
    ],
    "large factors in many layers": ["resnet56", [[i, [48, 48], 4000] for i in range(1, 19)], 0],
    "checksum a string": ["lenet300100", [[1, IP2, 3]], "x"],
    "checksum a list": ["lenet300100", [[1, IP2, 3]], []],
    "checksum of other tensors": ["lenet300100", [[1, IP2, 3]], 12345],
    "nested": ["lenet300100", [[[[[[[[[]]]]]]]]], 0],
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO_HEADERS)
def test_headers_of_networks_of_the_zoo(
    tmp_path: Path, zoo_file: container.Container, name: str
) -> None:
    assert_refused(tmp_path / "hostile.tpz", ZOO_HEADERS[name], zoo_file.sections)


def entry(name: Any = "0.bias", shape: Any = (20,), dtype: Any = "float32") -> list[Any]:
    return [name, shape, dtype]


OWN_HEADERS = {
    "table a number": [None, [], 5],
    "table of numbers": [None, [], [5, 6]],
    "entry too short": [None, [], [["0.bias", [20]]]],
    "name a number": [None, [], [entry(name=5)]],
    "shape a number": [None, [], [entry(shape=20)]],
    "shape negative": [None, [], [entry(shape=[-20])]],
    "shape huge": [None, [], [entry(shape=[HUGE] * 16)]],
    "shape huge and empty": [None, [], [entry(shape=[0, *[HUGE] * 3])]],
    "shape long": [None, [], [entry(shape=[1] * 70)]],
    "a million million values": [None, [], [entry(shape=[10**6, 10**6])]],
    "shape of floats": [None, [], [entry(shape=[20.0])]],
    **{
        f"dtype {dtype}": [None, [], [entry(dtype=dtype)]]
        for dtype in ("load", "__class__", "onnx", "os", "qint8", "float", "", "torch.int8")
    },
    "dtype a number": [None, [], [entry(dtype=3)]],
    "layer without shape": [None, [["0", [30, 20], 3]], []],
    "layer by number": [None, [[[20, 30], 0, [30, 20], 3]], []],
    "layer that does not exist": [None, [[[20, 30], "9", [30, 20], 3]], []],
    "layer without a weight": [None, [[[20, 30], "", [30, 20], 3]], []],
    "layer of a private name": [None, [[[20, 30], "__class__.__init__", [30, 20], 3]], []],
    "norm as layer": [None, [[[20], "1", [20], 3]], []],
    "layer twice": [None, [[[20, 30], "0", [30, 20], 3]] * 2, []],
    "shape of another layer": [None, [[[30, 20], "0", [30, 20], 3]], []],
    "modes of another shape": [None, [[[20, 30], "0", [30, 21], 3]], []],
    "ranks huge": [None, [[[20, 30], "0", [30, 20], HUGE]], []],
    "no tensors": [None, [], []],
}


@pytest.mark.parametrize("name", OWN_HEADERS)
def test_headers_of_own_models(tmp_path: Path, own_file: container.Container, name: str) -> None:
    assert_refused(tmp_path / "hostile.tpz", OWN_HEADERS[name], own_file.sections, own())


def test_nothing_is_imported_or_called_by_name(
    tmp_path: Path, own_file: container.Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise AssertionError(f"torch.{name} was looked up")

    monkeypatch.setattr(torch, "__getattr__", fail)
    before = set(sys.modules)
    for name in ("_dynamo", "onnx", "save", "antigravity", "this"):
        header = [None, [], [entry(dtype=name)]]
        assert_refused(tmp_path / "hostile.tpz", header, own_file.sections, own())
        assert_refused(tmp_path / "hostile.tpz", [name, [], 0], own_file.sections)
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    "sections", [[], [b""], [b"", b""], [b"", b"", b""], [b"\xff" * 9, b"\xff" * 50]], ids=str
)
def test_sections_that_are_missing_or_garbage(
    tmp_path: Path, zoo_file: container.Container, own_file: container.Container, sections: Any
) -> None:
    path = tmp_path / "hostile.tpz"
    assert_refused(path, zoo_file.header, sections)
    dense = own()
    assert_refused(path, own_file.header, sections, dense)


def test_many_values_are_not_believed_of_few_bytes(tmp_path: Path) -> None:
    one = nn.ParameterList([torch.zeros(1)])
    sections = container.read(saved(one, tmp_path)).sections
    for shape in ([10**6, 10**6], [1 << 23], [HUGE]):
        path = tmp_path / "hostile.tpz"
        container.write(path, [None, [], [["0", shape, "float32"]]], sections)
        with cheaply(), pytest.raises(CorruptFileError, match="bytes are said to hold"):
            tp.inspect(path)


def test_tables_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ParameterList(torch.randn(4, 40).unbind())
    wide = tp.UniformQuantizer(8192, 5.0)
    path = saved(model, tmp_path, quantizer=wide)
    tp.inspect(path)
    monkeypatch.setattr("tensorpress.codec.specs.MAX_COUNTS", 3 * 8193)
    monkeypatch.setattr("tensorpress.codec.tensors.MAX_COUNTS", 3 * 8193)
    with pytest.raises(CorruptFileError, match="probability tables have more than 24,579 counts"):
        tp.inspect(path)
    with pytest.raises(InvalidArgumentError, match=r"4 tensors .* take fewer levels"):
        tp.save(model, path, quantizer=wide)


def test_a_compressed_header_of_millions_of_lists(tmp_path: Path) -> None:
    count = 30 << 20
    packed = b"\xdd" + count.to_bytes(4, "big") + b"\x90" * count
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    stored = deflate.compress(packed) + deflate.flush()
    length = container.BitWriter()
    length.varint(2 * len(stored) + 1)
    body = length.to_bytes() + stored + b"\0"
    path = tmp_path / "hostile.tpz"
    path.write_bytes(b"TPZ\1" + zlib.crc32(body).to_bytes(4, "little") + body)
    assert len(body) < 40_000
    with cheaply(), pytest.raises(CorruptFileError, match="header"):
        tp.load(path)
