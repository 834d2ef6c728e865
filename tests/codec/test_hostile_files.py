"""Files with a valid checksum that were made to do harm."""

import sys
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
from torch import nn
from tpz_models import custom_model, forge_custom, forge_zoo, press_network, save_model

import tensorpress as tp
from tensorpress.codec import container, named_header
from tensorpress.codec.adaptive_coder import Stream
from tensorpress.codec.header import PackedLayer
from tensorpress.errors import CorruptFileError, InvalidArgumentError, ModelMismatchError

REFUSED = (CorruptFileError, ModelMismatchError)


@contextmanager
def limited_memory(megabytes: int = 100) -> Iterator[None]:
    start = time.perf_counter()
    tracemalloc.start()
    try:
        yield
        assert time.perf_counter() - start < 20  # not a hang, on any machine
        assert tracemalloc.get_traced_memory()[1] < megabytes << 20
    finally:
        tracemalloc.stop()


def assert_refused(path: Path, model: nn.Module | None = None) -> None:
    for read in (lambda: tp.load(path, model), lambda: tp.inspect(path)):
        with limited_memory(), pytest.raises(REFUSED, match=r"hostile\.tpz") as caught:
            read()
        assert len(str(caught.value)) < 500


def test_every_altered_byte_and_every_truncation_is_refused(tmp_path: Path) -> None:
    model = press_network("lenet5", budget="params=900")
    path = save_model(model, tmp_path, network="lenet5", quantizer=tp.UniformQuantizer(16, 3.0))
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
IP2, MODES = (100, 300), (20, 15, 10, 10)


def tucker(
    ranks: Any,
    *,
    modes: Any = MODES,
    scheme: str = "ada_tucker",
    name: str = "ip2",
    shape: Any = IP2,
    **flags: bool,
) -> PackedLayer:
    return PackedLayer(name, shape, scheme, ranks, {"modes": modes, **flags})


ZOO_LAYERS: dict[str, list[PackedLayer]] = {
    "ranks zero": [tucker((0, 0, 0, 0))],
    "ranks negative": [tucker((3, -5, 3, 3))],
    "ranks huge": [tucker((1 << 22,) * 4)],
    "ranks large": [tucker((100,) * 4)],
    "diagonal of unequal ranks": [tucker((3, 3, 3, 4), diagonal=True)],
    "diagonal huge": [tucker((1 << 22,) * 4, diagonal=True)],
    "reduced beyond the modes": [tucker((3, 3, 11, 3), reduced=True)],
    "shared cores of two shapes": [
        tucker((3, 3, 3, 3), scheme="scada_tucker"),
        tucker(
            (3, 3, 3, 2), modes=(10, 10, 10, 1), scheme="scada_tucker", name="ip3", shape=(10, 100)
        ),
    ],
    "more modes than anything has": [tucker((1,) * 24, modes=(*MODES, *[1] * 20))],
    "scheme ranks zero": [PackedLayer("ip2", IP2, "tucker2", (0, 3))],
    "scheme ranks too large": [PackedLayer("ip2", IP2, "tucker2", (101, 3))],
    "scheme ranks huge": [PackedLayer("ip2", IP2, "tucker2", (1 << 22, 1 << 22))],
    "scheme ranks too few": [PackedLayer("ip2", IP2, "tucker2", (3,))],
    "scheme ranks too many": [PackedLayer("ip2", IP2, "tucker2", (3, 3, 3))],
    "scheme ranks without end": [PackedLayer("ip2", IP2, "tucker2", (1,) * 10_000)],
    "a scheme that cannot take it": [PackedLayer("ip2", IP2, "spatial_svd", (3,))],
    "other tensors": [PackedLayer("ip2", IP2, "channel_svd", (3,))],
}


@pytest.mark.parametrize("name", ZOO_LAYERS)
def test_hostile_layers_of_zoo_networks_are_refused(
    tmp_path: Path, zoo_model: nn.Module, name: str
) -> None:
    path = tmp_path / "hostile.tpz"
    forge_zoo(path, ZOO_LAYERS[name], zoo_model)
    assert_refused(path)


@pytest.mark.parametrize(
    ("names", "numbers", "reason"),
    [
        (["network"], [99], "network number 99, which this version does not have .*lenet5"),
        (["network"], [(1 << 24) - 2], "which this version does not have"),
        (["network", "layer"], [2, 5], "does not describe a model"),
        (["network", "layer"], [2, 40], "has a scheme that this version"),
        (["network", "layer", "layer", "layer", "coder"], [2, 0, 0, 0, 7], "no entropy coder"),
        (["network", "header"], [0, 5000], "header ends early"),
    ],
)
def test_unknown_numbers_in_the_stream_are_refused(
    tmp_path: Path, names: list[str], numbers: list[int], reason: str
) -> None:
    path, stream = tmp_path / "hostile.tpz", Stream()
    for name, number in zip(names, numbers, strict=True):
        stream.number(name, number)
    container.write(path, stream.finish(), b"")
    with pytest.raises(REFUSED, match=reason):
        tp.load(path)
    assert_refused(path)


def test_a_scheme_with_more_options_than_any_has_is_refused(tmp_path: Path) -> None:
    path, stream = tmp_path / "hostile.tpz", Stream()
    named = msgpack.packb(["channel_svd", {"note": "x" * 5000}])
    for name, number in (("network", 2), ("layer", 5), ("named", len(named))):
        stream.number(name, number)
    for byte in named:
        stream.choice(256, byte)
    container.write(path, stream.finish(), b"")
    with pytest.raises(REFUSED, match="does not describe a model"):
        tp.load(path)


def entry(name: Any = "0.bias", shape: Any = (20,), dtype: Any = "float32") -> list[Any]:
    return [name, shape, dtype]


OWN_HEADERS = {
    "table a number": [[], 5],
    "table of numbers": [[], [5, 6]],
    "entry too short": [[], [["0.bias", [20]]]],
    "name a number": [[], [entry(name=5)]],
    "shape a number": [[], [entry(shape=20)]],
    "shape negative": [[], [entry(shape=[-20])]],
    "shape huge": [[], [entry(shape=[HUGE] * 16)]],
    "shape huge and empty": [[], [entry(shape=[0, *[HUGE] * 3])]],
    "shape long": [[], [entry(shape=[1] * 70)]],
    "a million million values": [[], [entry(shape=[10**6, 10**6])]],
    "shape of floats": [[], [entry(shape=[20.0])]],
    **{
        f"dtype {dtype}": [[], [entry(dtype=dtype)]]
        for dtype in ("load", "__class__", "onnx", "os", "qint8", "float", "", "torch.int8")
    },
    "dtype a number": [[], [entry(dtype=3)]],
    "layer without shape": [[["0", [30, 20], 3]], []],
    "layer by number": [[[0, [20, 30], [30, 20], 3]], []],
    "layer that does not exist": [[["9", [20, 30], [30, 20], 3]], []],
    "layer without a weight": [[["", [20, 30], [30, 20], 3]], []],
    "layer of a private name": [[["__class__.__init__", [20, 30], [30, 20], 3]], []],
    "norm as layer": [[["1", [20], [20], 3]], []],
    "layer twice": [[["0", [20, 30], [30, 20], 3]] * 2, []],
    "shape of another layer": [[["0", [30, 20], [30, 20], 3]], []],
    "modes of another shape": [[["0", [20, 30], [30, 21], 3]], []],
    "ranks huge": [[["0", [20, 30], [30, 20], HUGE]], []],
    "no tensors": [[], []],
}


@pytest.mark.parametrize("name", OWN_HEADERS)
def test_hostile_headers_of_custom_models_are_refused(
    tmp_path: Path, own_model: nn.Module, name: str
) -> None:
    path = tmp_path / "hostile.tpz"
    forge_custom(path, OWN_HEADERS[name], own_model)
    assert_refused(path, custom_model())


def test_nothing_is_imported_or_called_by_name(
    tmp_path: Path, own_model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise AssertionError(f"torch.{name} was looked up")

    monkeypatch.setattr(torch, "__getattr__", fail)
    before = set(sys.modules)
    path = tmp_path / "hostile.tpz"
    for name in ("_dynamo", "onnx", "save", "antigravity", "this"):
        forge_custom(path, [[], [entry(dtype=name)]], own_model)
        assert_refused(path, custom_model())
        forge_custom(path, [[["0", [20, 30], name, 3]], []], own_model)
        assert_refused(path, custom_model())
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    "parts", [(b"", b""), (b"\xff" * 9, b"\xff" * 50), (bytes(30), bytes(30))], ids=str
)
def test_missing_and_random_parts_are_refused(tmp_path: Path, parts: tuple[bytes, bytes]) -> None:
    path = tmp_path / "hostile.tpz"
    container.write(path, *parts)
    assert_refused(path, custom_model())


def test_a_small_file_that_claims_many_values_is_refused(tmp_path: Path) -> None:
    one = nn.ParameterList([torch.zeros(1)])
    for shape in ([10**6, 10**6], [1 << 23], [HUGE]):
        path = tmp_path / "hostile.tpz"
        forge_custom(path, [[], [["0", shape, "float32"]]], one)
        with limited_memory(), pytest.raises(CorruptFileError, match="bytes are said to hold"):
            tp.inspect(path)


def test_missing_values_are_refused_quickly(tmp_path: Path) -> None:
    model = nn.ParameterList([torch.randn(4000, 1000)])
    path, stream = tmp_path / "hostile.tpz", Stream()
    stream.number("network", 0)
    header = named_header.compress([[], [["0", [4000, 1000], "float32"]]])
    stream.number("header", len(header))
    container.write(path, stream.finish() + b"\x5a" * 40, header)
    with limited_memory(200), pytest.raises(CorruptFileError, match=r"hostile\.tpz"):
        tp.load(path, model)


def test_tables_larger_than_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twos = torch.tensor([-4096.0, 4096.0]).repeat(2500)  # better by a table than adaptively
    model = nn.ParameterList([twos.clone() for _ in range(4)])
    wide = tp.UniformQuantizer(8192, 4096.0)
    path = save_model(model, tmp_path, quantizer=wide)
    assert tp.inspect(path).parts["tables"] > 8
    monkeypatch.setattr("tensorpress.codec.static_coder.MAX_COUNTS", 3 * 8193)
    monkeypatch.setattr("tensorpress.codec.encode_tensors.MAX_COUNTS", 3 * 8193)
    with pytest.raises(CorruptFileError, match="probability tables have more than 24,579 counts"):
        tp.inspect(path)
    with pytest.raises(InvalidArgumentError, match="take larger steps"):
        tp.save(model, path, quantizer=wide)


def test_a_header_that_inflates_to_millions_of_lists_is_refused(tmp_path: Path) -> None:
    count = 30 << 20
    packed = b"\xdd" + count.to_bytes(4, "big") + b"\x90" * count
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    header = deflate.compress(packed) + deflate.flush()
    stream = Stream()
    stream.number("network", 0)
    stream.number("header", len(header))
    path = tmp_path / "hostile.tpz"
    container.write(path, stream.finish(), header)
    assert len(header) < 40_000
    with limited_memory(), pytest.raises(CorruptFileError, match="header"):
        tp.load(path)


def test_a_header_too_large_to_be_read_is_not_written() -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be stored"):
        named_header.compress([[], [["x" * 3_000_000, [1], "float32"]]])


@pytest.mark.parametrize(
    "stored", [b"", b"\xff\xff\xff", b"\x03\x00\x00", b"\xab\x56\x0a\x28\x57\x00" * 3], ids=str
)
def test_headers_that_do_not_inflate_are_refused(stored: bytes) -> None:
    with pytest.raises(CorruptFileError, match=r"a\.tpz: the header does not describe a model"):
        named_header.unpack("a.tpz", stored)


@pytest.mark.parametrize(
    "packed", [b"\xc1", b"\x80\x80", b"\x91" * 5000, b"\xd4\x05\x00"], ids=repr
)
def test_headers_that_are_not_msgpack_are_refused(packed: bytes) -> None:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    with pytest.raises(CorruptFileError, match=r"a\.tpz: the header does not describe a model"):
        named_header.unpack("a.tpz", deflate.compress(packed) + deflate.flush())
