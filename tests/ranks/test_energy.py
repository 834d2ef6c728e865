from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tensorpress.errors import InvalidArgumentError
from tensorpress.ranks import energy_rank

FRACTIONS = st.floats(0, 1, exclude_min=True, exclude_max=True)
WHOLE_VALUES = st.lists(st.integers(0, 1000), min_size=1, max_size=40)


def energy_fraction(values, rank):
    squares = sorted((value * value for value in values), reverse=True)
    return Fraction(sum(squares[:rank]), sum(squares))


@given(WHOLE_VALUES.filter(any), st.fractions(Fraction(1, 1000), 1, max_denominator=1000))
@example([1] * 10, Fraction(3, 10))
@example([3] * 7, Fraction(6, 7))
@example([1000, 1], Fraction(1))
def test_the_rank_is_the_smallest_that_keeps_the_fraction(values, fraction):
    rank = energy_rank(values, float(fraction))
    if fraction == 1:
        assert rank == len(values)
    else:
        assert energy_fraction(values, rank) >= fraction
        assert rank == 1 or energy_fraction(values, rank - 1) < fraction


@pytest.mark.parametrize("size", range(1, 60))
def test_ties_are_exact(size):
    values = [0.1] * size
    assert [energy_rank(values, rank / size) for rank in range(1, size + 1)] == [
        *range(1, size + 1)
    ]


def test_small_components_count():
    values = [1.0, 1e-5, 1e-6]
    assert energy_rank(values, 1 - 2e-10) == 1
    assert energy_rank(values, 1 - 0.5e-10) == 2


@given(WHOLE_VALUES, FRACTIONS, FRACTIONS)
def test_a_larger_fraction_never_keeps_less(values, one, other):
    assert energy_rank(values, min(one, other)) <= energy_rank(values, max(one, other))


@given(WHOLE_VALUES.filter(any), FRACTIONS)
def test_the_truncated_matrix_has_the_documented_error(values, fraction):
    matrix = torch.diag(torch.tensor(values, dtype=torch.float64))
    left, found, right = torch.linalg.svd(matrix)
    rank = energy_rank(found, fraction)
    rest = matrix - left[:, :rank] * found[:rank] @ right[:rank]
    assert rest.square().sum() / matrix.square().sum() <= 1 - fraction + 1e-12


@pytest.mark.parametrize("scale", [1e-100, 1e-3, 1e100])
def test_order_scale_and_kind_do_not_matter(scale):
    values = scale * np.array([1.0, 3.0, 2.0, 0.5])
    for given_values in (values, values.tolist(), torch.from_numpy(values)):
        assert energy_rank(given_values, 0.9) == 2


def test_a_zero_matrix_has_rank_one_unless_the_fraction_is_one():
    assert energy_rank([0.0, 0.0], 0.9) == 1
    assert energy_rank([0.0, 0.0], 1.0) == 2


@pytest.mark.parametrize("fraction", [0, -0.1, 1.001, float("nan")])
def test_a_fraction_lies_above_zero_and_up_to_one(fraction):
    with pytest.raises(InvalidArgumentError, match="above 0 and up to 1"):
        energy_rank([1.0], fraction)


@pytest.mark.parametrize("values", [[float("nan")], [float("inf")], [-1.0]])
def test_values_must_be_singular_values(values):
    with pytest.raises(InvalidArgumentError, match="singular values must lie"):
        energy_rank(values, 0.5)
