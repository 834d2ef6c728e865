"""Least squares of responses on inputs that say little or nothing."""

import pytest
import torch

from tensorpress.errors import InvalidArgumentError
from tensorpress.reconstruct.regression import DAMPING, Regression, damped_cholesky
from tensorpress.reconstruct.second_moment import RowMoment


def test_moments_that_rounding_left_indefinite_are_damped_more() -> None:
    second = torch.diag_embed(torch.tensor([[1.0, -1e-3, 0.5], [1.0, 2.0, 0.5]])).double()
    factor = damped_cholesky(second, torch.tensor([1e-4, 1e-4]).double())
    damping = (factor @ factor.mT - second).diagonal(dim1=-2, dim2=-1)
    assert 1e-3 < float(damping[0, 0]) <= 1e-2  # tenfold until it is enough
    torch.testing.assert_close(damping[1], torch.full((3,), 1e-4).double())  # the other as wanted


def test_inputs_that_never_change_leave_the_kernel_as_it_was() -> None:
    """What is left of them when they are centred is rounding, and nothing is fitted to that."""
    torch.manual_seed(0)
    x = (torch.randn(1, 1, 50) + 1e-7 * torch.randn(300, 1, 50)).float()
    prior, y = torch.randn(1, 4, 50), torch.randn(1, 1, 4) + 1e-6 * torch.randn(300, 1, 4)
    kernel = Regression(x).kernel(y, prior)
    torch.testing.assert_close(kernel.float(), prior, atol=1e-3, rtol=0)


def test_inputs_whose_squares_overflow_are_told() -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"inputs as large as 1\.0e\+30 cannot be fitted"
    ):
        Regression(torch.tensor([1e30, -1e30]).reshape(2, 1, 1))


@pytest.mark.parametrize("rows", [12, 30, 31, 80])
@pytest.mark.parametrize("biased", [True, False])
def test_fewer_rows_than_columns_have_the_same_solution(rows: int, biased: bool) -> None:
    """Against the normal equations, in columns × columns numbers, by rows or not."""
    torch.manual_seed(0)
    x, y, prior = torch.randn(rows, 2, 30) + 1, torch.randn(rows, 2, 4), torch.randn(2, 4, 30)
    regression = Regression(x, biased=biased, shrink=True)
    centred, responses = (z.double() - z.double().mean(0) * biased for z in (x, y))
    for group in range(2):
        inputs, outputs, before = centred[:, group], responses[:, group], prior[group].double()
        seen = inputs.T @ inputs / rows
        damping = seen.trace() / rows + DAMPING * seen.trace() / 30
        gap = outputs.T @ inputs / rows - before @ seen
        expected = before + gap @ torch.linalg.inv(seen + damping * torch.eye(30))
        kernel = regression.kernel(y, prior)[group]
        torch.testing.assert_close(kernel, expected, rtol=1e-3, atol=1e-4)
        second = seen + torch.eye(30) * seen.trace() / rows
        torch.testing.assert_close(regression.second[group], second, rtol=1e-4, atol=1e-4)
    assert isinstance(regression.moment, RowMoment) == (rows < 30)
