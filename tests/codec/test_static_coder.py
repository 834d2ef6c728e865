import numpy as np
import pytest
from constriction import stream
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorpress.codec.static_coder import _categorical, decode_range, encode_range
from tensorpress.codec.static_tables import Prior, parametric_prior
from tensorpress.errors import CorruptFileError


def information(symbols: np.ndarray, prior: Prior) -> float:
    return float((24 - np.log2(prior.counts[symbols - prior.lowest])).sum())


def draw(rng: np.random.Generator, prior: Prior, size: int) -> np.ndarray:
    symbols = rng.choice(len(prior.counts), size, p=prior.counts / 2**24) + prior.lowest
    return symbols.astype(np.int32)


@pytest.mark.parametrize("code", [0, 70, 137, 150, 239])
def test_the_coder_uses_exactly_the_counts_of_the_table(code: int) -> None:
    """Decode the first and the last of the 2**24 quantiles of every symbol."""
    prior = parametric_prior(code, 40)
    model = _categorical(prior)
    ends = np.cumsum(prior.counts)
    quantile = (2**64 - 1) >> 24
    for i, (start, end) in enumerate(zip(ends - prior.counts, ends, strict=True)):
        for place in (int(start), int(end) - 1):
            point = place * quantile
            words = np.array([point >> 32, point & 0xFFFFFFFF], np.uint32)
            assert stream.queue.RangeDecoder(words).decode(model) == i


@settings(max_examples=300)
@given(
    seed=st.integers(0, 2**32),
    parts=st.lists(
        st.tuples(st.integers(0, 239), st.sampled_from([1, 3, 64]), st.integers(0, 40)), max_size=5
    ),
    likely=st.booleans(),
)
def test_symbols_are_decoded_from_the_trimmed_stream(
    seed: int, parts: list[tuple[int, int, int]], likely: bool
) -> None:
    rng = np.random.default_rng(seed)
    priors = [parametric_prior(code, reach) for code, reach, _ in parts]
    arrays = [
        draw(rng, prior, size) if likely else rng.integers(-reach, reach + 1, size, dtype=np.int32)
        for prior, (_, reach, size) in zip(priors, parts, strict=True)
    ]
    data = encode_range(arrays, priors)
    assert not data.endswith(b"\0")
    decoded = decode_range(data, [array.size for array in arrays], priors)
    for array, result in zip(arrays, decoded, strict=True):
        assert result.dtype == np.int32
        assert np.array_equal(array, result)
    bits = sum(map(information, arrays, priors))
    assert 8 * len(data) <= 1.006 * bits + 34


def test_the_stream_ends_within_a_byte_of_the_information_on_average() -> None:
    rng = np.random.default_rng(0)
    prior = parametric_prior(90, 128)
    excess = []
    for _ in range(500):
        symbols = draw(rng, prior, 30)
        excess.append(8 * len(encode_range([symbols], [prior])) - information(symbols, prior))
    assert 0 < np.mean(excess) < 8


def test_nothing_is_coded_for_empty_and_constant_arrays() -> None:
    constant = Prior("histogram", -3, np.array([2**24]))
    wide = parametric_prior(90, 128)
    arrays = [np.full(7, -3, np.int32), np.empty(0, np.int32)]
    assert encode_range(arrays, [constant, wide]) == b""
    decoded = decode_range(b"", [7, 0], [constant, wide])
    assert [array.tolist() for array in decoded] == [[-3] * 7, []]
    with pytest.raises(CorruptFileError, match="after the coded values"):
        decode_range(b"\x01", [7], [constant])


def test_a_stream_never_changes() -> None:
    """Old files must decode: this stream is what every version has to write and read."""
    symbols = np.array([0, 1, -1, 0, 5, -17, 2, 0, 0, 3, -2, 64], np.int32)
    priors = [parametric_prior(70, 64), parametric_prior(160, 64)]
    data = encode_range([symbols, symbols[:10]], priors)
    assert data.hex() == GOLDEN_STREAM
    assert decode_range(data, [12, 10], priors)[0].tolist() == symbols.tolist()


@given(st.binary(max_size=80), st.integers(0, 60), st.integers(0, 239))
def test_any_stream_gives_symbols_of_the_table_or_is_refused(
    data: bytes, size: int, code: int
) -> None:
    prior = parametric_prior(code, 20)
    try:
        (symbols,) = decode_range(data, [size], [prior])
    except CorruptFileError:
        return
    assert symbols.shape == (size,)
    assert (np.abs(symbols) <= 20).all()


def test_impossible_streams_are_refused() -> None:
    prior = parametric_prior(70, 64)
    with pytest.raises(CorruptFileError, match="damaged"):
        decode_range(b"\xff" * 40, [200], [prior])
    with pytest.raises(CorruptFileError, match="after the coded values"):
        decode_range(b"\x01" * 100, [5], [prior])


GOLDEN_STREAM = "8057fcdd4dce4e0daf2453acc0763a"
