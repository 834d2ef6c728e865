import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorpress.codec.bit_io import BitReader, BitWriter
from tensorpress.codec.static_tables import Prior, parametric_prior, read_prior, write_prior
from tensorpress.errors import CorruptFileError

RNG = np.random.default_rng(0)


def entropy_of(prior: Prior) -> float:
    p = prior.counts / 2**24
    return float(-(p * np.log2(p)).sum())


def empirical_bits(symbols: np.ndarray) -> float:
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / symbols.size)).sum())


def round_trip(arrays: list[np.ndarray], reach: int) -> tuple[list[Prior], list[float], int]:
    writer, earlier = BitWriter(), []
    written = [write_prior(writer, array, reach, earlier) for array in arrays]
    reader, earlier = BitReader(writer.to_bytes()), []
    read = [read_prior(reader, reach, earlier) for _ in arrays]
    reader.finish()
    for (prior, _), decoded in zip(written, read, strict=True):
        assert prior.lowest == decoded.lowest
        assert prior.name == decoded.name
        assert np.array_equal(prior.counts, decoded.counts)
    return read, [bits for _, bits in written], writer.size


@pytest.mark.parametrize("reach", [1, 2, 32, 256, 32768])
@pytest.mark.parametrize("code", [0, 1, 40, 137, 138, 139, 200, 239])
def test_parametric_tables_are_complete_symmetric_and_fall(code: int, reach: int) -> None:
    prior = parametric_prior(code, reach)
    assert prior.lowest == -reach
    assert len(prior.counts) == 2 * reach + 1
    assert prior.counts.sum() == 2**24
    assert prior.counts.min() >= 1
    assert np.abs(prior.counts - prior.counts[::-1]).max() <= 1
    assert (np.diff(prior.counts[reach:]) <= 0).all()


def test_parametric_tables_follow_their_formulas() -> None:
    s = np.abs(np.arange(-256, 257))
    floor = 2**-10 / 513
    laplace = parametric_prior(6 * (8 + 4), 256)  # scale 2**4
    weights = (16 / 17.0) ** s
    expected = floor + (1 - 2**-10) * weights / weights.sum()
    np.testing.assert_allclose(laplace.counts / 2**24, expected, rtol=1e-2, atol=2**-23)
    gauss = parametric_prior(138 + 6 * (2 + 4), 256)
    weights = (512 / 513.0) ** (s.astype(float) ** 2)
    expected = floor + (1 - 2**-10) * weights / weights.sum()
    np.testing.assert_allclose(gauss.counts / 2**24, expected, rtol=1e-2, atol=2**-23)


# Checksums of tables, by scale and reach.
GOLDEN_TABLES = [
    249008,
    374082,
    224418,
    433913,
    560139,
    363288,
    293309,
    955712,
    557149,
    167000,
    305880,
    158416,
    293422,
    164594,
    492544,
    293440,
    731178,
    25930,
]


def test_tables_never_change() -> None:
    """Files are decoded with these counts: a difference of one breaks every file written."""
    sums = [
        int(parametric_prior(code, reach).counts @ np.arange(1, 2 * reach + 2) ** 2 % 1_000_003)
        for code in (0, 60, 137, 138, 200, 239)
        for reach in (1, 64, 1000)
    ]
    assert sums == GOLDEN_TABLES


@pytest.mark.parametrize("scale", [0.05, 0.4, 3.0, 20.0, 90.0])
@pytest.mark.parametrize("family", ["laplace", "gauss"])
def test_one_byte_describes_small_tensors_of_the_families(family: str, scale: float) -> None:
    draw = RNG.laplace if family == "laplace" else RNG.normal
    symbols = np.clip(np.round(draw(0, scale, 2000)), -256, 256).astype(np.int32)
    (prior,), (bits,), size = round_trip([symbols], 256)
    assert bits <= 1.02 * empirical_bits(symbols) + 2 * np.unique(symbols).size + 30
    if scale >= 3:
        assert prior.name == family
        assert size == 8


@settings(max_examples=20)  # each tries 240 tables
@given(st.lists(st.integers(-9, 60), min_size=1, max_size=30), st.sampled_from([60, 400, 9000]))
def test_no_table_of_a_family_is_better_than_the_one_chosen(values: list[int], reach: int) -> None:
    symbols = np.array(values, np.int32)
    histogram, lowest = np.bincount(symbols - symbols.min()), int(symbols.min())
    costs = [parametric_prior(code, reach).cost(histogram, lowest) for code in range(240)]
    _, bits = write_prior(BitWriter(), symbols, reach, [])
    assert bits <= 8 + 1.0001 * min(costs)


def test_histograms_come_within_a_thousandth_of_the_entropy_of_large_tensors() -> None:
    symbols = np.where(RNG.random(1_000_000) < 0.5, 37, RNG.integers(-100, 80, 1_000_000))
    symbols = symbols.astype(np.int32)
    (prior,), (bits,), size = round_trip([symbols], 128)
    assert prior.name == "histogram"
    assert bits <= 1.001 * empirical_bits(symbols)
    assert bits == pytest.approx(size + prior.cost(np.bincount(symbols + 100), -100))


def test_a_histogram_is_written_once_for_tensors_alike() -> None:
    arrays = [RNG.choice([-7, 2, 30], 3000).astype(np.int32) for _ in range(5)]
    arrays[0][:3] = [-7, 2, 30]
    priors, _, size = round_trip(arrays, 32)
    assert all(prior is priors[0] for prior in priors)
    assert size <= 8 * 40


def test_constant_tensors_take_three_bytes() -> None:
    for value in (-5, 0, 9):
        (prior,), (bits,), size = round_trip([np.full(10_000, value, np.int32)], 16)
        assert (bits, size) == (24, 24)
        assert prior.counts.tolist() == [2**24]


@settings(max_examples=60)
@given(
    st.integers(1, 40).flatmap(
        lambda reach: st.tuples(
            st.just(reach),
            st.lists(
                st.lists(st.integers(-reach, reach), min_size=1, max_size=50),
                min_size=1,
                max_size=6,
            ),
        )
    )
)
def test_any_symbols_have_a_table_that_is_read_back(case: tuple[int, list[list[int]]]) -> None:
    reach, lists = case
    arrays = [np.array(values, np.int32) for values in lists]
    priors, bits, _ = round_trip(arrays, reach)
    for prior, array, claimed in zip(priors, arrays, bits, strict=True):
        cost = prior.cost(np.bincount(array - array.min()), int(array.min()))
        assert cost <= claimed < cost + 8 * len(prior.counts) + 100


def test_symbols_outside_a_table_cost_infinitely_much() -> None:
    prior = parametric_prior(50, 2)
    assert prior.cost(np.array([1]), 2) < np.inf
    assert prior.cost(np.array([1]), 3) == np.inf
    assert prior.cost(np.array([1]), -3) == np.inf
    assert prior.cost(np.array([1, 0, 0, 0, 0, 1]), -2) == np.inf


@given(st.binary(max_size=60), st.integers(1, 300))
def test_any_bytes_are_a_table_within_reach_or_refused(data: bytes, reach: int) -> None:
    reader, earlier = BitReader(data), []
    try:
        for _ in range(8):
            prior = read_prior(reader, reach, earlier)
            assert prior.counts.sum() == 2**24
            assert prior.counts.min() >= 1
            assert prior.lowest >= -reach
            assert prior.lowest + len(prior.counts) - 1 <= reach
    except CorruptFileError:
        pass


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xf0", "240 is not a kind"),
        (b"\xff\x00", "does not exist"),
        (b"\xfe\x00\x00", "exceeds the levels"),
        (b"\xfe\x05\x01", "exceeds the levels"),
        (b"\xfe\x04\x02", "exceeds the levels"),
        (b"\xfe\x01\x02\x14", "is empty"),
        (b"\xfe\x01\x02", "end early"),
    ],
)
def test_damage_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptFileError, match=reason):
        read_prior(BitReader(data), 2, [])
