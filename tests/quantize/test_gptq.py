import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tensorpress.codec.static_tables import entropy_bits
from tensorpress.quantize.gptq import Feedback, damp, polish
from tensorpress.quantize.rate_distortion import (
    SymbolCosts,
    choose_symbols,
    coded_bits,
    first_magnitudes,
    round_values,
)


def moments(columns: int, correlation: float) -> Tensor:
    """Second moments of inputs that share a part."""
    return torch.eye(columns).double() * (1 - correlation) + correlation


def ideal_bits(symbols: Tensor) -> float:
    """The empirical entropy of all symbols together, in bits."""
    return symbols.numel() * entropy_bits(symbols)


def response_error(values: Tensor, symbols: Tensor, h: Tensor) -> float:
    error = values.double() - symbols.double()
    return float((error @ h * error).sum())


def test_bits_of_all_symbols_are_about_their_entropy() -> None:
    symbols = torch.randint(-3, 4, (4000,), generator=torch.Generator().manual_seed(0))
    result = float(SymbolCosts.from_symbols(symbols)(symbols).sum())
    assert result == pytest.approx(ideal_bits(symbols), rel=0.01)


def test_symbols_outside_the_table_cost_what_the_last_does() -> None:
    costs = SymbolCosts.from_symbols(torch.tensor([0, 1, -1]))
    assert costs(torch.tensor(10**6)) == costs.bits[-1]


def test_no_symbols_take_no_bits() -> None:
    none = torch.empty(0, dtype=torch.int32)
    assert ideal_bits(none) == 0
    assert coded_bits(none) == 0


def test_coded_bits_are_the_entropy_where_symbols_repeat() -> None:
    symbols = torch.randint(-3, 4, (4000,), generator=torch.Generator().manual_seed(0))
    assert coded_bits(symbols) == pytest.approx(ideal_bits(symbols))


def test_a_finer_step_costs_a_bit_more_a_value_where_no_symbol_repeats() -> None:
    values = torch.randn(300, generator=torch.Generator().manual_seed(0)).double()
    result = [coded_bits((values * 2.0**fine).round().int()) for fine in (16, 17, 18)]
    assert result[1] - result[0] == pytest.approx(300, rel=0.01)
    assert result[2] - result[1] == pytest.approx(300, rel=0.01)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30), st.floats(0.001, 1.0))
def test_no_other_symbol_near_is_better(numbers: list[float], price: float) -> None:
    values = torch.tensor(numbers).double()
    costs = SymbolCosts.from_symbols(values.round())

    def cost(symbols: Tensor) -> Tensor:
        return 2.0 * (values - symbols).square() + price * costs(symbols)

    chosen = cost(choose_symbols(values, 2.0, price, costs))
    nearest = values.round()
    for other in (nearest, nearest - nearest.sign(), torch.zeros_like(values)):
        assert bool((chosen <= cost(other) + 1e-9).all())


def test_a_price_makes_zeros_and_saves_bits() -> None:
    values = 0.7 * torch.randn(5000, generator=torch.Generator().manual_seed(0))
    plain, dear = round_values(values), round_values(values, 0.15)
    assert torch.equal(plain, values.round().int())
    assert int((dear == 0).sum()) > int((plain == 0).sum())
    assert ideal_bits(dear) < 0.9 * ideal_bits(plain)
    assert bool((dear.abs() <= plain.abs()).all())


@given(st.lists(st.integers(0, 500), min_size=1, max_size=40), st.floats(0.001, 1.0))
def test_no_other_symbol_is_worth_its_bits(counts: list[int], price: float) -> None:
    bits = -((torch.tensor(counts).double() + 0.1) / (sum(counts) + 1)).log2()
    starts = first_magnitudes(SymbolCosts(bits), price).double()
    assert bool((starts[1:-1].diff() >= 0).all())
    # Over all magnitudes, the symbol whose start is the last below has the least cost.
    magnitudes = torch.linspace(0, len(counts) - 0.5, 997).double()
    symbols = torch.arange(len(counts)).double()
    objective = (magnitudes[:, None] - symbols).square() + price * bits
    chosen = (magnitudes[:, None] >= starts[:-1]).sum(1) - 1
    excess = objective.gather(1, chosen[:, None]).squeeze(1) - objective.min(1).values
    assert float(excess.max()) < 1e-4 * float(objective.max())


def test_a_price_lowers_symbols_by_as_much_as_it_is_worth() -> None:
    values = torch.randn(3000, generator=torch.Generator().manual_seed(0)) / 2
    symbols = round_values(values, 0.6, 0.1)
    assert bool((symbols.abs() <= (values / 0.1).round().abs()).all())
    single = round_values(torch.tensor([1.4] + [0.1] * 5000), 0.2)
    assert single.tolist() == [0] * 5001


def test_large_tensors_are_rounded_by_the_costs_of_a_sample() -> None:
    values = torch.randn(300, 400, generator=torch.Generator().manual_seed(0))
    whole, part = round_values(values, 0.1, 0.5), round_values(values[:150], 0.1, 0.5)
    assert whole.shape == values.shape
    assert float((whole[:150] == part).float().mean()) > 0.99


def test_large_symbols_are_nearest() -> None:
    values = torch.tensor([1e6, -123456.5, 3e5, 0.2])
    assert round_values(values, 0.1, 1 / 2).tolist() == [2_000_000, -246_913, 600_000, 0]


def test_a_price_is_better_than_larger_steps() -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(1)).double()
    dear = round_values(values / 1.2, 0.15)
    error = float((values - 1.2 * dear).square().mean())
    step = 1.2
    while ideal_bits(round_values(values / step)) > ideal_bits(dear):
        step *= 1.01
    assert error < float((values - step * round_values(values / step)).square().mean())


def test_feedback_without_correlation_is_nearest_rounding() -> None:
    values = 3 * torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    h = torch.diag(torch.tensor([1.0, 3.0, 0.5, 2.0, 9.0]))
    assert torch.equal(Feedback.from_moments(h).round(values), values.round().int())


@pytest.mark.parametrize("columns", [9, 300])
def test_feedback_loses_less_of_the_responses(columns: int) -> None:
    values = torch.randn(20, columns, generator=torch.Generator().manual_seed(0))
    h = moments(columns, 0.8)
    symbols = Feedback.from_moments(h).round(values)
    assert symbols.dtype == torch.int32
    assert response_error(values, symbols, h) < 0.4 * response_error(values, values.round(), h)


def test_error_of_the_responses_is_that_of_the_pivots() -> None:
    values = 40 * torch.randn(400, 30, generator=torch.Generator().manual_seed(0))
    a = torch.randn(60, 30, generator=torch.Generator().manual_seed(1)).double()
    h = a.T @ a / 60
    feedback = Feedback.from_moments(h, damping=0.0)
    expected = 400 * float(feedback.pivots.sum()) / 12
    result = response_error(values, feedback.round(values), h)
    assert result == pytest.approx(expected, rel=0.05)
    assert float(feedback.pivots.log().sum()) == pytest.approx(float(torch.logdet(h)), rel=1e-6)


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = 2 * torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    feedback = Feedback.from_moments(moments(40, 0.6))
    whole = feedback.round(values, 0.05)
    monkeypatch.setattr("tensorpress.quantize.gptq._COLUMNS", 7)
    assert torch.equal(feedback.round(values, 0.05), whole)


def test_a_price_saves_bits_with_feedback_too() -> None:
    values = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    feedback = Feedback.from_moments(moments(40, 0.5))
    assert ideal_bits(feedback.round(values, 0.2)) < 0.95 * ideal_bits(feedback.round(values))


def test_rows_of_zeros_change_nothing_for_others() -> None:
    values = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    feedback = Feedback.from_moments(moments(20, 0.5))
    dead = torch.zeros(2, 20)
    symbols = feedback.round(torch.cat([values[:3], dead, values[3:]]))
    assert not symbols[3:5].any()
    assert torch.equal(symbols[[0, 1, 2, 5, 6, 7]], feedback.round(values))
    assert not feedback.round(dead, 0.1).any()


def test_zero_and_rank_deficient_inputs_are_rounded() -> None:
    values = torch.randn(4, 6)
    assert torch.equal(Feedback.from_moments(torch.zeros(6, 6)).round(values), values.round().int())
    one = torch.ones(6, 6)
    assert bool(torch.isfinite(Feedback.from_moments(one).upper).all())
    dead = torch.eye(6).double()
    dead[2, 2] = 0
    assert bool(torch.isfinite(Feedback.from_moments(dead).upper).all())


@given(st.integers(1, 40), st.floats(0.0, 0.95), st.integers(0, 1000))
def test_polished_symbols_lose_no_more(columns: int, correlation: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    values, h = torch.randn(5, columns, generator=random).double(), moments(columns, correlation)
    first = Feedback.from_moments(h).round(values)
    result = polish(first, values, h)
    assert response_error(values, result, damp(h)) <= response_error(values, first, damp(h))
    repeated = polish(result, values, h)
    assert response_error(values, repeated, damp(h)) <= response_error(values, result, damp(h))


def test_polish_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)).double()
    h, first = moments(50, 0.7), torch.zeros(20, 50, dtype=torch.int32)
    whole = polish(first, values, h), polish(first, values, h, 0.1)
    monkeypatch.setattr("tensorpress.quantize.gptq._COLUMNS", 7)
    assert torch.equal(polish(first, values, h), whole[0])
    assert torch.equal(polish(first, values, h, 0.1), whole[1])


def test_polish_finds_the_optimum_of_small_problems() -> None:
    values, h = torch.tensor([[0.45, 0.45]]).double(), moments(2, 0.9)
    result = polish(torch.zeros(1, 2), values, h)
    least = min(
        response_error(values, torch.tensor([[a, b]]), damp(h)) for a in (0, 1) for b in (0, 1)
    )
    assert response_error(values, result, damp(h)) == pytest.approx(least)


def test_polish_with_a_price_saves_bits() -> None:
    values = 0.8 * torch.randn(50, 60, generator=torch.Generator().manual_seed(0)).double()
    h, first = moments(60, 0.1), values.round()
    result = [ideal_bits(polish(first, values, h, price)) for price in (0.0, 0.15)]
    assert result[1] < 0.95 * result[0]
