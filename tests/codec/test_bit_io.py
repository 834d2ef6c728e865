import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorpress.codec.bit_io import (
    BitReader,
    BitWriter,
    level_codes,
    unzigzag,
    varint_bits,
    zigzag,
)
from tensorpress.errors import CorruptFileError


@given(st.integers(0, 2**64 - 1))
def test_varint_bits_counts_the_bits_of_a_varint(n: int) -> None:
    writer = BitWriter()
    writer.varint(n)
    assert writer.size == varint_bits(n)


@given(st.integers())
def test_zigzag_is_inverted(n: int) -> None:
    assert zigzag(n) >= 0
    assert unzigzag(zigzag(n)) == n


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("bits"), st.integers(0, 2**13 - 1)),
            st.tuples(st.just("unary"), st.integers(0, 20)),
            st.tuples(st.just("varint"), st.integers(0, 2**64 - 1)),
        )
    )
)
def test_written_values_are_read_back(items: list[tuple[str, float]]) -> None:
    extra = {"bits": [13], "unary": [], "varint": []}
    limit = {"bits": [13], "unary": [20], "varint": []}
    writer = BitWriter()
    for kind, value in items:
        getattr(writer, kind)(value, *extra[kind])
    data = writer.to_bytes()
    assert len(data) == -(-writer.size // 8)
    reader = BitReader(data)
    assert [(kind, getattr(reader, kind)(*limit[kind])) for kind, _ in items] == items
    reader.finish()
    assert reader.bytes_read == len(data)


@given(st.lists(st.integers(0, 40)))
def test_levels_are_read_back_and_take_the_bits_of_their_codes(levels: list[int]) -> None:
    writer = BitWriter()
    writer.levels(np.array(levels, np.int64))
    assert writer.size == (level_codes(np.array(levels, np.int64)) + 1).sum()
    reader = BitReader(writer.to_bytes())
    assert reader.levels(len(levels), limit=40) == levels
    reader.finish()


@given(st.binary(max_size=30), st.sampled_from(["bits", "unary", "varint", "levels"]))
def test_any_bytes_are_read_or_refused(data: bytes, kind: str) -> None:
    arguments = {"bits": [7], "unary": [9], "varint": [], "levels": [5, 9]}
    reader = BitReader(data)
    reads = 0
    try:
        while True:
            getattr(reader, kind)(*arguments[kind])
            reads += 1
    except CorruptFileError:
        assert reads <= 8 * len(data)


def test_numbers_out_of_bounds_are_refused() -> None:
    with pytest.raises(CorruptFileError, match="64 bits"):
        BitReader(b"\xff" * 9 + b"\x7f").varint()
    with pytest.raises(CorruptFileError, match="64 bits"):
        BitReader(b"\xff" * 20).varint()
    with pytest.raises(CorruptFileError, match="limit of 7"):
        BitReader(b"\xff\xff").unary(limit=7)
    writer = BitWriter()
    writer.levels(np.array([3, 5]))
    with pytest.raises(CorruptFileError, match=r"0\.\.4"):
        BitReader(writer.to_bytes() + b"\0").levels(2, limit=4)


def test_take_and_finish_check_the_remaining_bytes() -> None:
    reader = BitReader(b"abc")
    assert reader.take(2) == b"ab"
    with pytest.raises(CorruptFileError, match="end early"):
        reader.take(2)
    with pytest.raises(CorruptFileError, match="after the end"):
        reader.finish()
    reader = BitReader(b"\x01")
    reader.bits(7)
    with pytest.raises(CorruptFileError, match="after the end"):
        reader.finish()
