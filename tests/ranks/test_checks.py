import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorpress.errors import InvalidArgumentError
from tensorpress.ranks import check_ranks, round_ranks


@st.composite
def ranks_and_largest(draw):
    largest = draw(st.lists(st.integers(1, 300), max_size=4))
    return draw(st.tuples(*(st.integers(1, most) for most in largest))), tuple(largest)


@given(ranks_and_largest(), st.integers(1, 64))
def test_rounded_ranks_are_the_nearest_multiples_or_the_largest(case, multiple):
    ranks, largest = case
    found = round_ranks(ranks, largest, multiple)
    check_ranks(found, largest)
    for rank, most, near in zip(ranks, largest, found, strict=True):
        allowed = {*range(multiple, most + 1, multiple), most}
        assert near in allowed
        assert abs(near - rank) == min(abs(n - rank) for n in allowed)
    assert round_ranks(found, largest, multiple) == found
    assert round_ranks(largest, largest, multiple) == largest


@given(ranks_and_largest())
def test_a_multiple_of_one_changes_no_rank(case):
    assert round_ranks(*case, 1) == case[0]


def test_ties_round_up():
    assert round_ranks((12, 33), (64, 34), 8) == (16, 34)


@pytest.mark.parametrize("multiple", [0, -8])
def test_a_multiple_below_one_is_refused(multiple):
    with pytest.raises(InvalidArgumentError, match=f"multiples of 1 or more, not of {multiple}"):
        round_ranks((4,), (8,), multiple)


@pytest.mark.parametrize("ranks", [(0,), (9,), (4, 4)])
def test_ranks_out_of_range_are_refused(ranks):
    with pytest.raises(InvalidArgumentError):
        round_ranks(ranks, (8,), 4)
