import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensorpress.quantize.laplace_prior import laplace_bits

scales = st.floats(0.01, 1e4)


def distribution(x: float, scale: float) -> float:
    return math.exp(x / scale) / 2 if x < 0 else 1 - math.exp(-x / scale) / 2


@given(st.floats(-20, 20), st.floats(0.5, 50))
def test_laplace_bits_are_the_information_of_the_interval_around_a_value(value, scale):
    # The distribution is symmetric, and its differences cancel less on the negative side.
    left = -abs(value)
    mass = distribution(left + 0.5, scale) - distribution(left - 0.5, scale)
    bits = laplace_bits(torch.tensor(value).double(), torch.tensor(scale).double().log())
    assert bits.item() == pytest.approx(-math.log2(mass), rel=1e-6, abs=1e-9)


@given(scales)
def test_the_masses_of_all_integers_sum_to_one(scale):
    reach = math.ceil(40 * scale) + 1
    integers = torch.arange(-reach, reach + 1).double()
    masses = 2 ** -laplace_bits(integers, torch.tensor(scale).double().log())
    assert masses.sum().item() == pytest.approx(1, abs=1e-9)


@given(st.floats(-1e6, 1e6), scales)
def test_values_and_gradients_are_finite_in_single_precision(value, scale):
    steps = torch.tensor(value, requires_grad=True)
    log_scale = torch.tensor(scale).log().requires_grad_()
    bits = laplace_bits(steps, log_scale)
    bits.backward()
    assert math.isfinite(bits.item())
    assert bits.item() >= 0
    assert math.isfinite(steps.grad.item())
    assert math.isfinite(log_scale.grad.item())


@given(st.floats(-9, 9), st.floats(0.3, 9))
def test_gradients_are_those_of_finite_differences(value, scale):
    if abs(abs(value) - 0.5) < 1e-3:
        return
    inputs = [torch.tensor(value).double(), torch.tensor(scale).double().log()]
    assert torch.autograd.gradcheck(laplace_bits, [t.requires_grad_() for t in inputs])


def test_one_scale_for_each_value():
    steps = torch.tensor([2.0, 2.0])
    single = [laplace_bits(steps[:1], torch.tensor([s])) for s in (0.0, 1.0)]
    assert torch.equal(laplace_bits(steps, torch.tensor([0.0, 1.0])), torch.cat(single))
