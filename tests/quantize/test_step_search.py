from dataclasses import dataclass

import pytest

from tensorpress.errors import InvalidArgumentError
from tensorpress.quantize.step_search import Search, initial_base


@dataclass
class Try:
    cost: float


def smooth(base: float, price: float) -> Try:
    return Try(50 + 1000 * 2.0**-base * (1 - price))


def stairs(base: float, price: float) -> Try:
    """Costs that change where steps do, and with the price between."""
    return Try(50 + 1000 * 2.0 ** -(round(2 * base) / 2) * (1 - price))


def floor(base: float, price: float) -> Try:
    return Try(max(50.0, 50 + 1000 * (4 - base)) + 0 * price)


@pytest.mark.parametrize("limit", [60, 300, 1000, 9000])
@pytest.mark.parametrize("start", [-6.0, 0.0, 6.0])
@pytest.mark.parametrize("attempt", [smooth, stairs])
def test_budgets_are_used_and_never_exceeded(attempt: object, limit: float, start: float) -> None:
    result = Search(attempt, limit, 300.0, -30.0).run(start, 0.0)  # type: ignore[arg-type]
    assert 0.99 * limit <= result.cost <= limit


def test_a_budget_below_any_cost_is_an_error() -> None:
    with pytest.raises(InvalidArgumentError, match="within 20"):
        Search(floor, 20.0, 300.0, -30.0).run(0.0, 0.0)


def test_the_initial_base_is_about_right() -> None:
    sizes = [(1000, 3.0), (10, -2.0)]
    bits = sum(n * max(2 + size - 1.0, 0) for n, size in sizes)
    assert initial_base(bits, sizes) == pytest.approx(1.0, abs=0.2)


def test_a_budget_that_is_never_used_up_ends_at_the_finest_steps() -> None:
    result = Search(smooth, 1e9, 300.0, -3.0).run(2.0, 0.0)
    assert result.cost == smooth(-3.0, 0.0).cost


@pytest.mark.parametrize("slope", [30.0, 300.0, 3000.0])
def test_a_wrong_initial_slope_is_corrected(slope: float) -> None:
    tried = []

    def attempt(base: float, price: float) -> Try:
        tried.append(base)
        return smooth(base, price)

    Search(attempt, 1000.0, slope, -30.0).run(6.0, 0.0)
    assert len(tried) <= 12
