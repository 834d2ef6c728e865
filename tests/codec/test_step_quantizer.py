from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensorpress.codec.quantizers import MAX_CODE, MAX_SYMBOL, MIN_CODE, StepQuantizer
from tensorpress.errors import InvalidArgumentError

codes = st.integers(MIN_CODE, MAX_CODE)


@given(codes)
def test_steps_are_the_correctly_rounded_powers_of_the_eighth_root_of_two(code: int) -> None:
    step = StepQuantizer(code).step
    exact = Fraction(2) ** code  # the eighth power of the step
    below, above = (Fraction(step) * (1 + Fraction(k, 1 << 53)) for k in (-1, 1))
    assert below**8 <= exact <= above**8


@given(codes, st.floats(-0.4, 0.4))
def test_nearest_returns_the_nearest_step(code: int, off: float) -> None:
    assert StepQuantizer.nearest(StepQuantizer(code).step * 2 ** (off / 8)).code == code


@given(codes, st.lists(st.integers(-MAX_SYMBOL, MAX_SYMBOL), min_size=1, max_size=20))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_symbols_of_levels_are_recovered(dtype: torch.dtype, code: int, symbols: list[int]) -> None:
    quantizer, given_symbols = StepQuantizer(code), torch.tensor(symbols, dtype=torch.int32)
    values = quantizer.values(given_symbols, dtype)
    if bool(torch.isfinite(values).all()):
        assert torch.equal(quantizer.symbols(values), given_symbols)
        assert torch.equal(quantizer(values), values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_types_keep_levels_as_far_as_their_precision_goes(dtype: torch.dtype) -> None:
    symbols = torch.arange(-100, 101, dtype=torch.int32)
    quantizer = StepQuantizer(-43)
    assert torch.equal(quantizer.symbols(quantizer.values(symbols, dtype)), symbols)


@given(st.lists(st.floats(-100, 100, width=32), max_size=30), st.integers(-60, 60))
def test_no_value_moves_by_more_than_half_a_step(values: list[float], code: int) -> None:
    quantizer, t = StepQuantizer(code), torch.tensor(values, dtype=torch.float64)
    assert bool(((quantizer(t) - t).abs() <= quantizer.step * (0.5 + 1e-12)).all())


def test_ties_go_to_the_even_symbol() -> None:
    t = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
    assert StepQuantizer(0).symbols(t).tolist() == [-2, 0, 0, 2, 2]


def test_empty_tensors_and_tensors_with_gradients_are_quantized() -> None:
    quantizer = StepQuantizer(3)
    assert quantizer(torch.zeros(0, 4)).shape == (0, 4)
    assert not quantizer(torch.ones(3, requires_grad=True)).requires_grad


@pytest.mark.parametrize("code", [MIN_CODE - 1, MAX_CODE + 1])
def test_codes_out_of_range_are_refused(code: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"from -1024 to 1023, not {code}"):
        StepQuantizer(code)


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf"), 1e-300, 1e300])
def test_steps_that_are_not_positive_numbers_are_refused(step: float) -> None:
    with pytest.raises(InvalidArgumentError, match="step must be"):
        StepQuantizer.nearest(step)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (torch.tensor([1]), r"not torch\.int64"),
        (torch.tensor([1.0, float("nan")]), "NaN or infinite"),
        (torch.tensor([-float("inf")]), "NaN or infinite"),
        (torch.tensor([-8388610.0]), "more than 8,388,608 steps of 1: take a larger step"),
    ],
    ids=str,
)
def test_values_without_a_symbol_are_refused(values: torch.Tensor, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        StepQuantizer(0).symbols(values)


def test_levels_beyond_the_type_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"65504 has no level of step 1024"):
        StepQuantizer(80).symbols(torch.tensor([-65504.0]).half())
