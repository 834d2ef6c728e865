import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tensorpress.codec import adaptive_coder as module
from tensorpress.codec.adaptive_coder import SCALES, Stream, nearest_scale
from tensorpress.codec.bit_io import Symbols
from tensorpress.codec.context_tables import initial_state, tables
from tensorpress.errors import CorruptFileError

COMPILED = 1 << 20


def encode(symbols: Symbols, shape: tuple[int, ...], expect: int = 0) -> bytes:
    stream = Stream()
    stream.expect(expect)
    stream.symbols(shape, nearest_scale(symbols), symbols)
    return stream.finish()


def decode(data: bytes, symbols: Symbols, shape: tuple[int, ...], expect: int = 0) -> Symbols:
    stream = Stream(data)
    stream.expect(expect)
    result = stream.symbols(shape, nearest_scale(symbols))
    stream.check_end()
    return result


def laplace(shape: tuple[int, ...], scale: float, seed: int = 0) -> Symbols:
    values = np.random.default_rng(seed).laplace(0, scale, int(np.prod(shape)))
    return values.round().astype(np.int32)


calls = st.lists(
    st.one_of(
        st.tuples(st.just("number"), st.integers(0, (1 << 24) - 2)),
        st.tuples(st.just("signed"), st.integers(-(1 << 23) + 1, (1 << 23) - 1)),
        st.tuples(st.just("word"), st.integers(0, (1 << 32) - 1)),
        st.tuples(st.just("choice"), st.integers(0, 47)),
    ),
    max_size=40,
)


def code_value(stream: Stream, kind: str, value: int = 0) -> int:
    if kind == "choice":
        return stream.choice(48, value)
    if kind == "word":
        return stream.word(value)
    return getattr(stream, kind)(kind, value)


@pytest.mark.parametrize(
    ("shape", "width", "checksum"),
    [
        ((90, 2), 9, 0x4F8DCB65),
        ((5, 4, 3, 3), 40, 0x703D0D0A),
        ((300,), 3, 0x38A8E879),
        ((4, 3, 5), 60000, 0x7B82FAF7),
    ],
)
def test_a_stream_never_changes(shape: tuple[int, ...], width: int, checksum: int) -> None:
    """Old files must decode: these streams are what every version has to write and read."""
    k = np.arange(np.prod(shape), dtype=np.int64)
    symbols = (k * k * 7919 + 31 * k) % (2 * width + 1) - width
    symbols //= 1 + k % 2 * width // 2  # of many sizes in even columns, few in odd ones
    data = encode(symbols.astype(np.int32), shape)
    assert zlib.crc32(data) == checksum
    assert (decode(data, symbols, shape) == symbols).all()


@given(calls)
def test_numbers_round_trip(numbers: list[tuple[str, int]]) -> None:
    stream = Stream()
    for kind, value in numbers:
        assert code_value(stream, kind, value) == value
    data = stream.finish()
    assert len(data) <= stream.bits / 8 + 1
    reader = Stream(data)
    assert [code_value(reader, kind) for kind, _ in numbers] == [value for _, value in numbers]
    assert reader.bits == pytest.approx(stream.bits)
    reader.check_end()


@given(
    arrays(
        np.int32,
        st.integers(1, 60),
        elements=st.one_of(st.integers(-3, 3), st.integers(-(1 << 23), 1 << 23)),
    ),
    st.sampled_from([(), (1,), (1, 1), (1, 1, 1), (1, 1, 1, 1)]),
)
def test_symbols_round_trip(symbols: Symbols, more: tuple[int, ...]) -> None:
    shape = (len(symbols), *more)
    assert (decode(encode(symbols, shape), symbols, shape) == symbols).all()


SHAPES = [(600,), (30, 20), (6, 5, 20), (5, 4, 5, 6), (5, 4, 2, 5, 3), (1, 600), (600, 1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.1, 2.0, 5000.0])
def test_compiled_code_writes_and_reads_the_same(shape: tuple[int, ...], scale: float) -> None:
    symbols = laplace(shape, scale)
    data = encode(symbols, shape)
    assert encode(symbols, shape, COMPILED) == data
    assert (decode(data, symbols, shape, COMPILED) == symbols).all()


def test_outliers_in_compiled_code() -> None:
    symbols = laplace((40, 40), 0.3)
    symbols[::100] = [(-1) ** k * (1 << 23) for k in range(16)]
    data = encode(symbols, (40, 40), COMPILED)
    assert data == encode(symbols, (40, 40))
    assert (decode(data, symbols, (40, 40), COMPILED) == symbols).all()


@pytest.mark.parametrize("scale", [0.05, 0.5, 3.0, 40.0])
def test_independent_symbols_take_their_entropy(scale: float) -> None:
    symbols = laplace((60, 60), scale)
    _, counts = np.unique(symbols, return_counts=True)
    entropy = -(counts * np.log2(counts / counts.sum())).sum() / 8
    assert len(encode(symbols, (60, 60))) < 1.02 * entropy + 20


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_and_columns_of_their_own_scales_take_less(axis: int) -> None:
    scales = np.logspace(-1, 1.5, 60)
    draws = np.random.default_rng(0).laplace(0, 1, (60, 60))
    symbols = (draws * (scales[:, None] if axis == 0 else scales)).round().astype(np.int32).ravel()
    _, counts = np.unique(symbols, return_counts=True)
    entropy = -(counts * np.log2(counts / counts.sum())).sum() / 8
    assert len(encode(symbols, (60, 60))) < 0.9 * entropy


def test_signs_of_smooth_kernels_are_predicted() -> None:
    generator = np.random.default_rng(0)
    level = generator.normal(0, 3, (30, 10, 1, 1)) + generator.normal(0, 1, (30, 10, 3, 3))
    symbols = level.round().astype(np.int32)
    shuffled = generator.permuted(symbols.ravel())
    smooth = len(encode(symbols.ravel(), (30, 10, 3, 3)))
    assert smooth < 0.8 * len(encode(shuffled, (30, 10, 3, 3)))


def test_the_buffer_grows_when_symbols_need_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = laplace((20, 20), 1e6)
    data = encode(symbols, (20, 20))
    monkeypatch.setattr(module, "_ROOM", 200)
    stream = Stream()
    stream.symbols((20, 20), nearest_scale(symbols), symbols)
    assert stream.finish() == data


def test_a_rewound_stream_is_as_if_nothing_was_written() -> None:
    symbols = laplace((10, 10), 2.0)
    stream = Stream()
    mark = stream.mark()
    stream.symbols((10, 10), 3, laplace((10, 10), 90.0, seed=1))
    stream.rewind(mark)
    stream.symbols((10, 10), nearest_scale(symbols), symbols)
    assert stream.finish() == encode(symbols, (10, 10))


@settings(max_examples=50)
@given(st.binary(max_size=40), st.sampled_from([0, COMPILED]), st.integers(0, SCALES - 1))
def test_any_bytes_are_read_or_refused(data: bytes, expect: int, scale: int) -> None:
    stream = Stream(data)
    stream.expect(expect)
    try:
        result = stream.symbols((9, 3, 3, 3), scale)
        stream.check_end()
    except CorruptFileError:
        return
    assert result.shape == (243,)
    assert int(np.abs(result.astype(np.int64)).max()) <= 1 << 23


def test_truncated_and_extended_streams_are_refused() -> None:
    symbols = laplace((20, 20), 9.0)
    data = encode(symbols, (20, 20))
    for size in range(0, len(data) - 4, 7):
        with pytest.raises(CorruptFileError, match="end early"):
            decode(data[:size], symbols, (20, 20))
    with pytest.raises(CorruptFileError, match="after the coded values"):
        decode(data + bytes(5), symbols, (20, 20))


def test_lookup_tables_match_their_functions() -> None:
    stretch, squash, logarithms, reciprocals = (np.array(table) for table in tables())
    x = np.arange(-2048, 2048)
    logistic = 65536 / (1 + np.exp(-x / 256))
    assert np.abs(squash - logistic.clip(32, 65504)).max() <= 1
    p = (np.arange(4096) + 0.5) / 4096
    assert np.abs(stretch - (256 * np.log(p / (1 - p))).clip(-2047, 2047)).max() <= 1
    assert np.abs(logarithms[1:] - 8 * np.log2(np.arange(1, 4096))).max() <= 0.51
    assert (reciprocals[1:] == 65536 // np.arange(1, 1024)).all()
    assert len(initial_state()) > 100_000
