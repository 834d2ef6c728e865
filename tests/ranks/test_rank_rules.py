from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensorpress.decompose.spectrum import spectrum
from tensorpress.errors import InvalidArgumentError
from tensorpress.ranks import (
    EnergyRanks,
    EVBMFRanks,
    FixedRanks,
    FractionRanks,
    RankRule,
    check_ranks,
    energy_rank,
    evbmf,
    parse_rank_rule,
)

LARGEST = (8, 6)
CPU_AND_CUDA = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def make_spectrum(*groups, columns=100, device="cpu"):
    """The spectrum of a stack of matrices with these singular values."""
    values = torch.tensor(groups, dtype=torch.float64, device=device)
    padded = torch.nn.functional.pad(torch.diag_embed(values), (0, columns - values.shape[-1]))
    return spectrum(padded if len(groups) > 1 else padded[0])


@pytest.mark.parametrize(
    ("ranks", "rule"),
    [
        ((4, 2), FixedRanks((4, 2))),
        ([4, 2], FixedRanks((4, 2))),
        (torch.Size([4, 2]), FixedRanks((4, 2))),
        ([np.int64(4), np.int32(2)], FixedRanks((4, 2))),
        (4, FixedRanks(4)),
        (np.int64(4), FixedRanks(4)),
        (0.5, FractionRanks(0.5)),
        (np.float32(0.5), FractionRanks(0.5)),
        (1.0, FractionRanks(1.0)),
        ("evbmf", EVBMFRanks()),
        ("evbmf:0.7", EVBMFRanks(0.7)),
        ("evbmf:1", EVBMFRanks()),
        ("energy:0.9", EnergyRanks(0.9)),
        ("energy:1", EnergyRanks(1.0)),
    ],
)
def test_numbers_sequences_and_names_give_their_rule(ranks, rule):
    result = parse_rank_rule(ranks)
    assert result == rule
    assert isinstance(result, RankRule)


def test_numpy_numbers_become_plain_ones():
    ranks = parse_rank_rule([np.int64(4), np.int32(2)]).ranks([], LARGEST)
    assert [type(rank) for rank in ranks] == [int, int]


def test_a_custom_rule_is_accepted():
    @dataclass(frozen=True)
    class Halves:
        needs_spectra: bool = False

        def ranks(self, spectra, largest):
            return tuple(-(-most // 2) for most in largest)

    rule = Halves()
    assert parse_rank_rule(rule) is rule


@pytest.mark.parametrize("unknown", ["evbnf", "enrgy:0.5", "", "5", "evbmf 0.5"])
def test_unknown_names_are_refused_with_the_known_ones(unknown):
    with pytest.raises(InvalidArgumentError, match=r"known: energy:FRACTION, evbmf, evbmf:W"):
        parse_rank_rule(unknown)


@pytest.mark.parametrize("name", ["energy", "energy:", "energy:much", "energy:1.5", "energy:nan"])
def test_an_energy_needs_its_fraction(name):
    with pytest.raises(InvalidArgumentError, match=r"fraction in \(0, 1\] after 'energy:'"):
        parse_rank_rule(name)


@pytest.mark.parametrize("name", ["evbmf:", "evbmf:half", "evbmf:0", "evbmf:1.1", "evbmf:-1"])
def test_a_weakening_is_a_fraction(name):
    with pytest.raises(InvalidArgumentError, match=r"fraction in \(0, 1\] after 'evbmf:'"):
        parse_rank_rule(name)


@pytest.mark.parametrize("wrong", [True, None, {4}, [4, True], [4, 2.0], [[4]], ["4"], 1j])
def test_anything_else_is_refused_with_the_possible_rules(wrong):
    with pytest.raises(
        InvalidArgumentError, match=r"an int, a float in \(0, 1\].*evbmf, evbmf:WEAKENING; got"
    ):
        parse_rank_rule(wrong)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_fractions_out_of_range_are_refused(fraction):
    for rule in (parse_rank_rule, EnergyRanks, EVBMFRanks):
        with pytest.raises(InvalidArgumentError, match="above 0 and up to 1"):
            rule(fraction)


@pytest.mark.parametrize("ranks", [0, -1, (4, 0)])
def test_ranks_below_one_are_refused_by_the_rule(ranks):
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        parse_rank_rule(ranks)


def test_fixed_ranks_are_not_capped():
    assert parse_rank_rule((8, 6)).ranks([], LARGEST) == (8, 6)
    assert parse_rank_rule(6).ranks([], LARGEST) == (6, 6)
    with pytest.raises(InvalidArgumentError, match=r"rank 2 of \(7, 7\) must be from 1 to 6"):
        parse_rank_rule(7).ranks([], LARGEST)
    with pytest.raises(InvalidArgumentError, match=r"expected 2 ranks, at most \(8, 6\), got 1"):
        parse_rank_rule((4,)).ranks([], LARGEST)


@pytest.mark.parametrize("ranks", [(0, 1), (1, 7), (1,), (1, 1, 1), ()])
def test_check_ranks_refuses(ranks):
    with pytest.raises(InvalidArgumentError):
        check_ranks(ranks, LARGEST)


@given(st.floats(0, 1, exclude_min=True), st.lists(st.integers(1, 10**6), max_size=4))
def test_a_fraction_gives_valid_ranks(fraction, largest):
    ranks = parse_rank_rule(fraction).ranks([], largest)
    check_ranks(ranks, largest)
    for rank, most in zip(ranks, largest, strict=True):
        assert abs(rank - fraction * most) <= 0.5 or rank == 1
    assert parse_rank_rule(1.0).ranks([], largest) == tuple(largest)


@pytest.mark.parametrize("device", CPU_AND_CUDA)
def test_each_spectrum_has_its_own_rank(device):
    first = [9.0, 8.0] + [1.0] * 6
    second = [7.0] + [1.0] * 5
    spectra = [make_spectrum(first, device=device), make_spectrum(second, device=device)]
    assert parse_rank_rule("evbmf").ranks(spectra, LARGEST) == (2, 1)
    assert parse_rank_rule("evbmf").ranks(spectra[::-1], LARGEST[::-1]) == (1, 2)
    expected = (energy_rank(first, 0.97), energy_rank(second, 0.97))
    assert parse_rank_rule("energy:0.97").ranks(spectra, LARGEST) == expected
    assert len(set(expected)) == 2


def test_the_shape_of_the_matrix_counts_for_evbmf():
    values = [4.0, 3.0, 2.0, 1.5, 1.2, 1.0, 1.0, 0.9]
    for columns in (8, 100, 10_000):
        ranks = EVBMFRanks().ranks([make_spectrum(values, columns=columns)], (8,))
        assert ranks == (max(1, evbmf(values, 8, columns).rank),)


def test_weakening_goes_a_fraction_of_the_way_from_the_largest_rank():
    spectra = [make_spectrum([9.0, 8.0] + [1.0] * 18, columns=400), make_spectrum([1.0] * 10)]
    largest = (20, 10)
    assert parse_rank_rule("evbmf").ranks(spectra, largest) == (2, 1)
    assert parse_rank_rule("evbmf:0.5").ranks(spectra, largest) == (11, 6)
    assert parse_rank_rule("evbmf:0.9").ranks(spectra, largest) == (4, 2)
    assert parse_rank_rule("evbmf:0.01").ranks(spectra, largest) == largest


@given(st.floats(0.001, 1), st.integers(1, 6))
def test_a_smaller_weakening_never_lowers_the_rank(weakening, rank):
    spectra = [make_spectrum([50.0] * rank + [1.0] * (12 - rank))]
    (result,) = EVBMFRanks(weakening).ranks(spectra, (12,))
    assert rank <= result <= 12
    assert result <= EVBMFRanks(weakening / 2).ranks(spectra, (12,))[0]


def test_groups_have_the_largest_of_their_ranks():
    plain, spiked, twice = [1.0] * 8, [9.0] + [1.0] * 7, [9.0, 8.0] + [1.0] * 6
    spectra = [make_spectrum(plain, twice, spiked)]
    assert parse_rank_rule("evbmf").ranks(spectra, (8,)) == (2,)
    needed = max(energy_rank(values, 0.9) for values in (plain, twice, spiked))
    assert parse_rank_rule("energy:0.9").ranks(spectra, (8,)) == (needed,)


@pytest.mark.parametrize("name", ["evbmf", "energy:0.5"])
@pytest.mark.parametrize("values", [[0.0] * 8, [1.0] * 8])
def test_ranks_from_spectra_lie_from_one_to_the_largest(name, values):
    spectra = [make_spectrum(values)]
    assert parse_rank_rule(name).ranks(spectra, (1,)) == (1,)
    check_ranks(parse_rank_rule(name).ranks(spectra, (8,)), (8,))
    assert parse_rank_rule("energy:1.0").ranks(spectra, (5,)) == (5,)


@pytest.mark.parametrize("name", ["evbmf", "energy:0.5"])
def test_schemes_without_spectra_need_another_rule(name):
    rule = parse_rank_rule(name)
    assert rule.needs_spectra
    with pytest.raises(InvalidArgumentError, match=r"needs the spectra of a matrix.*a number or a"):
        rule.ranks([], LARGEST)
    assert rule.ranks([], ()) == ()


def test_numbers_and_fractions_need_no_spectra():
    assert not parse_rank_rule(4).needs_spectra
    assert not parse_rank_rule(0.5).needs_spectra
