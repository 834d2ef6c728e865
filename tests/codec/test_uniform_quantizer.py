import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensorpress.codec.quantizers import UniformQuantizer
from tensorpress.errors import InvalidArgumentError

quantizers = st.builds(
    UniformQuantizer,
    levels=st.integers(1, 1 << 15).map(lambda n: 2 * n),
    bound=st.floats(1e-6, 1e6),
    rounding=st.sampled_from(["nearest", "floor"]),
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@given(quantizer=quantizers, seed=st.integers(0, 2**31))
def test_values_on_a_level_stay(dtype: torch.dtype, quantizer: UniformQuantizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    t = torch.randn(64, generator=generator, dtype=torch.float64) * quantizer.bound
    t = t.clamp(-60000, 60000).to(dtype)
    once = quantizer(t)
    assert once.dtype == dtype
    if once.isfinite().all():
        assert torch.equal(quantizer(once), once)


@given(quantizer=quantizers)
def test_every_index_of_every_level_is_recovered(quantizer: UniformQuantizer) -> None:
    indices = torch.arange(quantizer.levels + 1, dtype=torch.int32)
    assert torch.equal(quantizer.indices(quantizer.values(indices)), indices)


@given(quantizer=quantizers, share=st.floats(-1, 1))
def test_error_is_half_a_step_or_a_step_down(quantizer: UniformQuantizer, share: float) -> None:
    t = torch.tensor(share * quantizer.bound, dtype=torch.float64)
    error = float(t - quantizer(t)) / quantizer.step
    tolerance = 1e-9
    if quantizer.rounding == "nearest":
        assert abs(error) <= 0.5 + tolerance
    else:
        assert -tolerance <= error < 1 + tolerance


def test_floor_is_the_printed_formula_and_biased_by_half_a_step() -> None:
    quantizer = UniformQuantizer(64, 3.0, "floor")
    t = torch.empty(200_000, dtype=torch.float64).uniform_(-3, 3, generator=torch.manual_seed(0))
    b, q = 3.0, 64
    printed = -b + torch.floor((t.clamp(-b, b) + b) * q / (2 * b)) * 2 * b / q
    torch.testing.assert_close(quantizer(t), printed, rtol=0, atol=1e-12)
    assert float((quantizer(t) - t).mean() / quantizer.step) == pytest.approx(-0.5, abs=0.01)
    nearest = UniformQuantizer(64, 3.0)
    assert float((nearest(t) - t).mean() / nearest.step) == pytest.approx(0, abs=0.01)


def test_ends_zero_and_clipping_are_exact() -> None:
    for rounding in ("nearest", "floor"):
        quantizer = UniformQuantizer(100, 0.7, rounding)  # type: ignore[arg-type]
        ends = torch.tensor([-0.7, 0.0, 0.7])
        assert torch.equal(quantizer(ends), ends)
        far = torch.tensor([-9e9, 9e9])
        assert quantizer.indices(far).tolist() == [0, 100]


@given(quantizer=quantizers, values=st.lists(st.floats(-2, 2), min_size=1))
def test_nearest_is_symmetric(quantizer: UniformQuantizer, values: list[float]) -> None:
    if quantizer.rounding == "nearest":
        t = torch.tensor(values, dtype=torch.float64) * quantizer.bound
        assert torch.equal(quantizer(-t), -quantizer(t))


def test_the_bound_is_the_one_a_file_can_hold() -> None:
    assert UniformQuantizer(4, 0.1).bound == float(torch.tensor(0.1))
    assert UniformQuantizer(4, 0.1) == UniformQuantizer(4, UniformQuantizer(4, 0.1).bound)
    assert UniformQuantizer(4, 2.0).step == 1.0


@pytest.mark.parametrize("levels", [-2, 0, 1, 7, 65538])
def test_levels_must_be_even_and_few(levels: int) -> None:
    with pytest.raises(InvalidArgumentError, match="even number from 2 to 65536"):
        UniformQuantizer(levels, 1.0)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan, 1e39, 1e-60])
def test_bound_must_be_positive_and_finite_in_float32(bound: float) -> None:
    with pytest.raises(InvalidArgumentError, match="bound must be"):
        UniformQuantizer(2, bound)


def test_bad_rounding_and_bad_tensors_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="'ceil'"):
        UniformQuantizer(2, 1.0, "ceil")  # type: ignore[arg-type]
    quantizer = UniformQuantizer(2, 1.0)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(InvalidArgumentError, match="NaN or infinite"):
            quantizer(torch.tensor([0.0, bad]))
    with pytest.raises(InvalidArgumentError, match=r"torch\.int64"):
        quantizer(torch.tensor([1]))
