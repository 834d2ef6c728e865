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
def test_multiples_of_one_are_all_ranks(case):
    assert round_ranks(*case, 1) == case[0]


def test_of_two_as_near_the_larger_is_taken():
    assert round_ranks((12, 33), (64, 34), 8) == (16, 34)


@pytest.mark.parametrize("multiple", [0, -8])
def test_ranks_are_no_multiples_of_nothing(multiple):
    with pytest.raises(InvalidArgumentError, match=f"multiples of 1 or more, not of {multiple}"):
        round_ranks((4,), (8,), multiple)


@pytest.mark.parametrize("ranks", [(0,), (9,), (4, 4)])
def test_ranks_that_cannot_be_are_not_rounded_to_some_that_can(ranks):
    with pytest.raises(InvalidArgumentError):
        round_ranks(ranks, (8,), 4)
