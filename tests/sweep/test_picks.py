from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorpress.errors import InvalidArgumentError
from tensorpress.sweep import Pick, Variant
from tensorpress.sweep.picks import Outcome, Trial, frontier


def outcome(name: str, *runs: tuple[int, float] | None) -> Outcome:
    trials = [
        Trial(seed, "", *(run or (None, None)))  # type: ignore[arg-type]
        for seed, run in enumerate(runs)
    ]
    return Outcome(Variant(name, {}, cast(Any, None)), trials)


def names(outcomes: list[Outcome]) -> str:
    return "".join(one.variant.name for one in outcomes)


SOME = [
    outcome("a", (900, 2.0)),
    outcome("b", (1000, 1.5)),
    outcome("c", (1000, 1.6)),
    outcome("d", (1100, 1.5)),
    outcome("e", (1200, 1.0)),
    outcome("f", (1300, 1.2)),
]


def test_the_frontier_is_what_nothing_else_beats() -> None:
    assert names(frontier(SOME)) == "abe"
    assert names(frontier([SOME[1], outcome("x", (1000, 1.5))])) == "bx"
    assert frontier([]) == []


def test_bytes_are_the_largest_and_errors_the_mean_of_the_seeds() -> None:
    one = outcome("a", (900, 1.0), (1100, 2.0), (1000, 1.5))
    assert (one.bytes, one.error, one.complete) == (1100, 1.5, True)
    assert names(frontier([one, outcome("b", (1050, 1.6))])) == "ba"


def test_variants_of_which_a_run_diverged_are_not_compared() -> None:
    diverged = outcome("x", (1, 0.0), None)
    assert not diverged.complete
    assert names(frontier([diverged, *SOME])) == "abe"
    assert frontier([outcome("y", None)]) == []
    assert Pick.parse("bytes<=2000").choose([diverged]) is None


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ("bytes<=1199", "b"),
        ("bytes<=1200", "e"),
        ("bytes<=899", None),
        ("error<=1.5", "b"),
        ("error<=1.49", "e"),
        (" error <= 50 ", "a"),
        ("error<=.9", None),
    ],
)
def test_picks(rule: str, name: str | None) -> None:
    found = Pick.parse(rule).choose(SOME)
    assert (found and found.variant.name) == name


runs = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=9)


@given(runs, st.integers(0, 10), st.sampled_from(["bytes", "error"]))
def test_a_pick_is_the_best_within_its_limit(
    numbers: list[tuple[int, int]], limit: int, limited: str
) -> None:
    outcomes = [outcome(str(place), pair) for place, pair in enumerate(numbers)]
    axis = 0 if limited == "bytes" else 1
    within = [pair for pair in numbers if pair[axis] <= limit]
    found = Pick.parse(f"{limited}<={limit}").choose(outcomes)
    if not within:
        assert found is None
    else:
        assert found is not None
        best = min(within, key=lambda pair: (pair[1 - axis], pair[axis]))
        assert (found.bytes, found.error) == best


@pytest.mark.parametrize("text", ["", "bytes", "bytes<1200", "size<=3", "error<=-1", "bytes<=1kB"])
def test_what_is_no_pick(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="a pick must be bytes<=NUMBER or error<=NUMBER"):
        Pick.parse(text)
