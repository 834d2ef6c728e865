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
    rank_rule,
)

LARGEST = (8, 6)
CPU_AND_CUDA = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def with_values(*groups, columns=100, device="cpu"):
    """The spectrum of a stack of matrices with these singular values."""
    values = torch.tensor(groups, dtype=torch.float64, device=device)
    padded = torch.nn.functional.pad(torch.diag_embed(values), (0, columns - values.shape[-1]))
    return spectrum(padded if len(groups) > 1 else padded[0])


@pytest.mark.parametrize(
    ("given_ranks", "rule"),
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
def test_every_way_to_name_a_rule(given_ranks, rule):
    found = rank_rule(given_ranks)
    assert found == rule
    assert isinstance(found, RankRule)


def test_numpy_numbers_become_plain_ones():
    ranks = rank_rule([np.int64(4), np.int32(2)]).ranks([], LARGEST)
    assert [type(rank) for rank in ranks] == [int, int]


def test_a_rule_of_ones_own_is_taken_as_it_is():
    @dataclass(frozen=True)
    class Halves:
        needs_spectra: bool = False

        def ranks(self, spectra, largest):
            return tuple(-(-most // 2) for most in largest)

    rule = Halves()
    assert rank_rule(rule) is rule


@pytest.mark.parametrize("unknown", ["evbnf", "enrgy:0.5", "", "5", "evbmf 0.5"])
def test_unknown_names_are_refused_with_the_known_ones(unknown):
    with pytest.raises(InvalidArgumentError, match=r"known: energy:FRACTION, evbmf, evbmf:W"):
        rank_rule(unknown)


@pytest.mark.parametrize("name", ["energy", "energy:", "energy:much", "energy:1.5", "energy:nan"])
def test_an_energy_needs_its_fraction(name):
    with pytest.raises(InvalidArgumentError, match=r"fraction in \(0, 1\] after 'energy:'"):
        rank_rule(name)


@pytest.mark.parametrize("name", ["evbmf:", "evbmf:half", "evbmf:0", "evbmf:1.1", "evbmf:-1"])
def test_a_weakening_is_a_fraction(name):
    with pytest.raises(InvalidArgumentError, match=r"fraction in \(0, 1\] after 'evbmf:'"):
        rank_rule(name)


@pytest.mark.parametrize("wrong", [True, None, {4}, [4, True], [4, 2.0], [[4]], ["4"], 1j])
def test_anything_else_is_refused_with_what_is_possible(wrong):
    with pytest.raises(
        InvalidArgumentError, match=r"an int, a float in \(0, 1\].*evbmf, evbmf:WEAKENING; got"
    ):
        rank_rule(wrong)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_fractions_out_of_range_are_refused(fraction):
    for rule in (rank_rule, EnergyRanks, EVBMFRanks):
        with pytest.raises(InvalidArgumentError, match="above 0 and up to 1"):
            rule(fraction)


@pytest.mark.parametrize("ranks", [0, -1, (4, 0)])
def test_ranks_below_one_are_refused_before_any_layer_is_seen(ranks):
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        rank_rule(ranks)


def test_given_ranks_are_not_capped():
    assert rank_rule((8, 6)).ranks([], LARGEST) == (8, 6)
    assert rank_rule(6).ranks([], LARGEST) == (6, 6)
    with pytest.raises(InvalidArgumentError, match=r"rank 2 of \(7, 7\) must be from 1 to 6"):
        rank_rule(7).ranks([], LARGEST)
    with pytest.raises(InvalidArgumentError, match=r"expected 2 ranks, at most \(8, 6\), got 1"):
        rank_rule((4,)).ranks([], LARGEST)


@pytest.mark.parametrize("ranks", [(0, 1), (1, 7), (1,), (1, 1, 1), ()])
def test_check_ranks_refuses(ranks):
    with pytest.raises(InvalidArgumentError):
        check_ranks(ranks, LARGEST)


@given(st.floats(0, 1, exclude_min=True), st.lists(st.integers(1, 10**6), max_size=4))
def test_a_fraction_gives_ranks_that_exist(fraction, largest):
    ranks = rank_rule(fraction).ranks([], largest)
    check_ranks(ranks, largest)
    for rank, most in zip(ranks, largest, strict=True):
        assert abs(rank - fraction * most) <= 0.5 or rank == 1
    assert rank_rule(1.0).ranks([], largest) == tuple(largest)


@pytest.mark.parametrize("device", CPU_AND_CUDA)
def test_spectral_rules_take_each_spectrum_in_turn(device):
    first = [9.0, 8.0] + [1.0] * 6
    second = [7.0] + [1.0] * 5
    spectra = [with_values(first, device=device), with_values(second, device=device)]
    assert rank_rule("evbmf").ranks(spectra, LARGEST) == (2, 1)
    assert rank_rule("evbmf").ranks(spectra[::-1], LARGEST[::-1]) == (1, 2)
    expected = (energy_rank(first, 0.97), energy_rank(second, 0.97))
    assert rank_rule("energy:0.97").ranks(spectra, LARGEST) == expected
    assert len(set(expected)) == 2


def test_the_shape_of_the_matrix_counts_for_evbmf():
    values = [4.0, 3.0, 2.0, 1.5, 1.2, 1.0, 1.0, 0.9]
    for columns in (8, 100, 10_000):
        ranks = EVBMFRanks().ranks([with_values(values, columns=columns)], (8,))
        assert ranks == (max(1, evbmf(values, 8, columns).rank),)


def test_a_weakened_rank_lies_so_far_on_the_way_from_the_largest():
    spectra = [with_values([9.0, 8.0] + [1.0] * 18, columns=400), with_values([1.0] * 10)]
    largest = (20, 10)
    assert rank_rule("evbmf").ranks(spectra, largest) == (2, 1)
    assert rank_rule("evbmf:0.5").ranks(spectra, largest) == (11, 6)
    assert rank_rule("evbmf:0.9").ranks(spectra, largest) == (4, 2)
    assert rank_rule("evbmf:0.01").ranks(spectra, largest) == largest


@given(st.floats(0.001, 1), st.integers(1, 6))
def test_less_weakening_keeps_no_less(weakening, rank):
    spectra = [with_values([50.0] * rank + [1.0] * (12 - rank))]
    (found,) = EVBMFRanks(weakening).ranks(spectra, (12,))
    assert rank <= found <= 12
    assert found <= EVBMFRanks(weakening / 2).ranks(spectra, (12,))[0]


def test_groups_get_the_rank_of_the_most_demanding():
    plain, spiked, twice = [1.0] * 8, [9.0] + [1.0] * 7, [9.0, 8.0] + [1.0] * 6
    assert rank_rule("evbmf").ranks([with_values(plain, twice, spiked)], (8,)) == (2,)
    needed = max(energy_rank(values, 0.9) for values in (plain, twice, spiked))
    assert rank_rule("energy:0.9").ranks([with_values(plain, twice, spiked)], (8,)) == (needed,)


@pytest.mark.parametrize("name", ["evbmf", "energy:0.5"])
@pytest.mark.parametrize("values", [[0.0] * 8, [1.0] * 8])
def test_ranks_from_spectra_lie_from_one_to_the_largest(name, values):
    spectra = [with_values(values)]
    assert rank_rule(name).ranks(spectra, (1,)) == (1,)
    check_ranks(rank_rule(name).ranks(spectra, (8,)), (8,))
    assert rank_rule("energy:1.0").ranks(spectra, (5,)) == (5,)


@pytest.mark.parametrize("name", ["evbmf", "energy:0.5"])
def test_schemes_without_spectra_need_another_rule(name):
    rule = rank_rule(name)
    assert rule.needs_spectra
    with pytest.raises(InvalidArgumentError, match=r"needs the spectra of a matrix.*a number or a"):
        rule.ranks([], LARGEST)
    assert rule.ranks([], ()) == ()


def test_numbers_and_fractions_need_no_spectra():
    assert not rank_rule(4).needs_spectra
    assert not rank_rule(0.5).needs_spectra
