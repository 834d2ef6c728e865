from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorpress.codec.bit_io import BitReader, BitWriter
from tensorpress.codec.huffman import MAX_LENGTH, HuffmanCode, code_lengths
from tensorpress.errors import CorruptFileError

symbol_lists = st.lists(st.integers(-50, 50), min_size=1, max_size=300)


@given(st.lists(st.integers(0, 10**6), min_size=2).filter(lambda x: np.count_nonzero(x) > 1))
def test_code_lengths_are_complete_and_within_a_bit_of_the_entropy(counts: list[int]) -> None:
    array = np.array(counts)
    lengths = code_lengths(array).astype(float)
    used = array > 0
    assert np.array_equal(lengths > 0, used)
    assert (2.0 ** -lengths[used]).sum() == 1
    p = array[used] / array.sum()
    entropy = -(p * np.log2(p)).sum()
    assert entropy - 1e-9 <= (p * lengths[used]).sum() < entropy + 1


@settings(max_examples=40)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=5))
def test_lengths_are_optimal(counts: list[int]) -> None:
    best = min(
        sum(n * c for n, c in zip(lengths, counts, strict=True))
        for lengths in product(range(1, len(counts)), repeat=len(counts))
        if sum(2.0**-n for n in lengths) <= 1
    )
    assert code_lengths(np.array(counts)) @ np.array(counts) == best


def test_skewed_counts_give_the_longest_code_words() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 50:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    assert code_lengths(np.array(fibonacci)).max() == 49 <= MAX_LENGTH
    code = HuffmanCode(0, code_lengths(np.array(fibonacci)))
    symbols = np.tile(np.arange(50, dtype=np.int32), 20)
    assert np.array_equal(code.decode(code.encode(symbols), symbols.size)[0], symbols)


@given(symbol_lists, st.binary(max_size=3))
def test_symbols_are_decoded_and_the_code_is_read_back(values: list[int], after: bytes) -> None:
    symbols = np.array(values, np.int32)
    code = HuffmanCode.from_symbols(symbols)
    writer = BitWriter()
    code.write(writer)
    code = HuffmanCode.read(BitReader(writer.to_bytes()), reach=50)
    data = code.encode(symbols)
    assert len(data) == -(-code.bits(symbols) // 8)
    decoded, size = code.decode(data + after, symbols.size)
    assert size == len(data)
    assert decoded.dtype == np.int32
    assert np.array_equal(decoded, symbols)


def test_code_words_are_canonical() -> None:
    code = HuffmanCode(-1, np.array([3, 1, 3, 2], np.uint8))
    words = {-1: "110", 0: "0", 1: "111", 2: "10"}
    for symbol, word in words.items():
        assert code.encode(np.array([symbol], np.int32))[0] == int(word.ljust(8, "0"), 2)


def test_long_arrays_cross_the_borders_of_chunks() -> None:
    rng = np.random.default_rng(0)
    symbols = np.round(rng.laplace(0, 20, 700_000)).astype(np.int32)
    code = HuffmanCode.from_symbols(symbols)
    assert np.array_equal(code.decode(code.encode(symbols), symbols.size)[0], symbols)


def test_a_single_symbol_needs_no_bits() -> None:
    symbols = np.full(9, -4, np.int32)
    code = HuffmanCode.from_symbols(symbols)
    assert code.encode(symbols) == b""
    assert code.decode(b"rest", 9)[0].tolist() == [-4] * 9


@given(symbol_lists, st.data())
def test_damaged_streams_give_symbols_of_the_code_or_are_refused(
    values: list[int], choice: st.DataObject
) -> None:
    symbols = np.array(values, np.int32)
    code = HuffmanCode.from_symbols(symbols)
    data = choice.draw(st.binary(max_size=400))
    try:
        decoded, size = code.decode(data, symbols.size)
    except CorruptFileError:
        return
    assert size <= len(data)
    assert set(decoded.tolist()) <= set(values)


def test_truncated_streams_and_stray_bits_are_refused() -> None:
    symbols = np.array([0, 1, 2, 3, 3] * 9, np.int32)
    code = HuffmanCode.from_symbols(symbols)
    data = code.encode(symbols)
    for size in range(len(data)):
        with pytest.raises(CorruptFileError, match="end early"):
            code.decode(data[:size], symbols.size)
    assert code.bits(symbols) % 8
    with pytest.raises(CorruptFileError, match="last byte"):
        code.decode(data[:-1] + bytes([data[-1] | 1]), symbols.size)


def test_incomplete_codes_are_refused() -> None:
    def read(lowest: int, lengths: list[int]) -> None:
        writer = BitWriter()
        HuffmanCode(lowest, np.array(lengths, np.uint8)).write(writer)
        HuffmanCode.read(BitReader(writer.to_bytes()), reach=2)

    read(-2, [1, 0, 0, 0, 1])
    for lengths in ([1, 1, 1], [1, 2, 0], [0, 0], [2, 2, 2]):
        with pytest.raises(CorruptFileError, match="not complete"):
            read(0, lengths)
    for lowest, lengths in ((-3, [1, 1]), (2, [1, 1]), (-2, [2, 2, 2, 3, 0, 3]), (0, [])):
        with pytest.raises(CorruptFileError, match="exceeds the levels"):
            read(lowest, lengths)
    with pytest.raises(CorruptFileError):
        read(0, [MAX_LENGTH + 1, 1])


@given(st.binary(max_size=60), st.integers(1, 300))
def test_any_bytes_are_read_as_a_code_or_refused(data: bytes, reach: int) -> None:
    try:
        code = HuffmanCode.read(BitReader(data), reach)
    except CorruptFileError:
        return
    assert code.lowest >= -reach
    assert code.lowest + len(code.lengths) - 1 <= reach
