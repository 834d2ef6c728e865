"""Files with a valid checksum that were made to do harm."""

import sys
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from struct import pack
from typing import Any

import msgpack
import pytest
import torch
from torch import nn
from tpz_models import custom_model, forge_custom, forge_zoo, press_network, save_model

import tensorpress as tp
from tensorpress.codec import container, named_header
from tensorpress.codec.adaptive_coder import Stream
from tensorpress.codec.binary_coder import POSITION
from tensorpress.codec.bit_io import BitWriter
from tensorpress.codec.encode_tensors import encode_tensors
from tensorpress.codec.header import PackedLayer
from tensorpress.codec.state_dict import load_tensors
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
        (["network", "layer", "layer", "layer", "coder"], [2, 0, 0, 0, 9], "an entropy coder"),
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


def test_constants_of_any_size_are_not_allocated_beyond_the_ceiling(tmp_path: Path) -> None:
    one = nn.ParameterList([torch.zeros(1)])
    path = tmp_path / "hostile.tpz"
    for shape in ([10**6, 10**6], [1 << 25], [HUGE]):
        forge_custom(path, [[], [["0", shape, "float32"]]], one)
        with limited_memory(), pytest.raises(CorruptFileError, match=r"hostile\.tpz: .*max_bytes="):
            load_tensors(path)
        with limited_memory():
            assert tp.inspect(path).tensors[0].count == prod(shape)
    forge_custom(path, [[], [["0", [1 << 25], "float32"]]], one)
    assert load_tensors(path, max_bytes=(1 << 27) + 4096)["0"].shape == (1 << 25,)


def test_raw_values_lend_no_memory_to_wide_constants(tmp_path: Path) -> None:
    count = 64 * 1024
    tensors = {"0": torch.arange(count).to(torch.uint8), "1": torch.full((1000,), 0.5).double()}
    model = nn.ParameterDict({k: nn.Parameter(v, requires_grad=False) for k, v in tensors.items()})
    shapes = [["0", [count], "uint8"], ["1", [4 * count, 1024], "float64"]]
    path = tmp_path / "hostile.tpz"
    stream, header = Stream(), named_header.compress([[], shapes])
    for name, number in (("network", 0), ("header", len(header)), ("coder", 0)):
        stream.number(name, number)
    payload = encode_tensors(stream, list(tensors.values()), [None, None])
    container.write(path, stream.finish(), header + payload)
    for read in (load_tensors, tp.load):
        with limited_memory(), pytest.raises(REFUSED):
            read(path)
    assert len(model) == len(tp.inspect(path).tensors)


@pytest.mark.parametrize("shape", [(1, 1 << 24), (1 << 24, 1), (1, 1, 1 << 12, 1 << 12)])
def test_symbols_that_a_small_file_has_no_right_to_are_refused(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    path, stream = tmp_path / "hostile.tpz", Stream()
    header = named_header.compress([[], [["0", list(shape), "float32"]]])
    for name, number in (("network", 0), ("header", len(header)), ("coder", 0), ("kinds", 0)):
        stream.number(name, number)
    stream.number("steps", 0)
    stream.number("static", 0)
    stream.number("scales", 0)
    container.write(path, stream.finish(), header)
    for read in (load_tensors, tp.inspect):
        with limited_memory(), pytest.raises(CorruptFileError, match=r"hostile\.tpz: .*max_bytes="):
            read(path)


@pytest.mark.parametrize(
    "shape", [(1, 4000, 1, 1), (4000, 1, 1, 1), (1, 1, 4000, 1), (1, 1, 1, 4000)]
)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_end_of_the_bytes_is_seen_on_every_axis(shape: tuple[int, ...], compiled: bool) -> None:
    stream = Stream(b"\x5a" * 20)
    stream.expect(1 << 20 if compiled else 1)
    with pytest.raises(CorruptFileError, match="end early"):
        stream.symbols(shape, 40)
    assert int(stream._state[POSITION]) < 20 + 12  # not the 1,000 bytes of 4000 values


@pytest.mark.parametrize(
    ("dtype", "kind", "value"),
    [
        ("float32", "kind", float("nan")),
        ("float16", "kind", 1e30),
        ("int64", "kind of integers", 1e30),
        ("complex64", "kind of integers", 0.5),
    ],
)
def test_constants_that_no_tensor_has_are_refused(
    tmp_path: Path, dtype: str, kind: str, value: float
) -> None:
    path, stream = tmp_path / "hostile.tpz", Stream()
    header = named_header.compress([[], [["x", [4], dtype]]])
    for name, number in (("network", 0), ("header", len(header)), ("coder", 0), (kind, 7)):
        stream.number(name, number)
    stream.word(int.from_bytes(pack(">f", value), "big"))
    container.write(path, stream.finish(), header)
    for read in (load_tensors, tp.inspect):
        with pytest.raises(CorruptFileError, match=r"NaN or infinite|one float32 number"):
            read(path)


def test_raw_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    path, stream = tmp_path / "hostile.tpz", Stream()
    header = named_header.compress([[], [["x", [2], "float32"], ["y.bias", [2], "complex64"]]])
    for name, number in (("network", 0), ("header", len(header)), ("coder", 0)):
        stream.number(name, number)
    payload = encode_tensors(
        stream, [torch.ones(2), torch.tensor([1j, complex("nan")])], [None] * 2
    )
    container.write(path, stream.finish(), header + payload)
    with pytest.raises(CorruptFileError, match=r"hostile\.tpz: tensor 'y\.bias' has NaN"):
        load_tensors(path)


def test_tables_take_memory_of_their_own(tmp_path: Path) -> None:
    wide = [[f"{k}", [4], "float32"] for k in range(400)]
    path, stream = tmp_path / "hostile.tpz", Stream()
    header = named_header.compress([[], wide])
    for name, number in (("network", 0), ("header", len(header)), ("coder", 0)):
        stream.number(name, number)
    tables = BitWriter()
    for k in range(400):
        for name, number in (("kind", 0), ("step", 0), ("static", 1), ("reach", 32768)):
            stream.number(name, number)
        tables.bits(100 + k % 140, 8)
    stream.number("tables", 400)
    container.write(path, stream.finish(), header + tables.to_bytes())
    with pytest.raises(CorruptFileError, match="max_bytes="):
        load_tensors(path)


def test_a_header_of_millions_of_small_objects_is_refused(tmp_path: Path) -> None:
    for rows in (b"\x90" * ((2 << 20) - 7), b"\x93\xa0\x90\xa4bool" * 200_000):
        packed = b"\x92\x90\xdd" + (len(rows) // (8 if rows[0] == 0x93 else 1)).to_bytes(4, "big")
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        header = deflate.compress(packed + rows) + deflate.flush()
        with limited_memory(80), pytest.raises(CorruptFileError, match=r"a\.tpz"):
            named_header.unpack("a.tpz", header)


def test_missing_values_are_refused_quickly(tmp_path: Path) -> None:
    model = nn.ParameterList([torch.randn(4000, 1000)])
    path, stream = tmp_path / "hostile.tpz", Stream()
    stream.number("network", 0)
    header = named_header.compress([[], [["0", [4000, 1000], "float32"]]])
    stream.number("header", len(header))
    container.write(path, stream.finish() + b"\x5a" * 40, header)
    with limited_memory(), pytest.raises(CorruptFileError, match=r"hostile\.tpz"):
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
    with pytest.raises(InvalidArgumentError, match="but a file takes at most"):
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
