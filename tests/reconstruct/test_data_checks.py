"""What is said of calibration data that say too little."""

import logging

import pytest
import torch

from tensorpress.reconstruct.data_checks import (
    column_moments,
    count_directions,
    sample_columns,
    warn_of_few_rows,
)


def warned(rows: int, x: torch.Tensor, caplog: pytest.LogCaptureFixture) -> str:
    caplog.set_level(logging.WARNING, "tensorpress.press")
    warn_of_few_rows("conv", rows, x.shape[-1], column_moments(x))
    return caplog.text


def test_enough_rows_that_vary_are_no_reason_to_warn(caplog: pytest.LogCaptureFixture) -> None:
    decaying = torch.randn(5000, 2, 100) * torch.logspace(0, -2, 100)
    assert warned(5000, decaying, caplog) == ""


def test_rows_that_repeat_are_told_beside_enough_of_them(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(10, 1, 1000)[torch.randint(10, (6000,))]
    assert "vary in only 10 of the 256 directions checked" in warned(6000, x, caplog)


def test_zeros_vary_in_no_direction(caplog: pytest.LogCaptureFixture) -> None:
    assert "vary in only 0 of the 9 directions checked" in warned(
        500, torch.zeros(500, 4, 9), caplog
    )


def test_some_columns_are_all_of_few_and_spread_over_many() -> None:
    assert sample_columns(256).tolist() == list(range(256))
    some = sample_columns(1000)
    assert (len(some.unique()), int(some[0]), int(some[-1])) == (256, 0, 999)


def test_the_group_that_varies_most_counts() -> None:
    second = torch.stack([torch.zeros(4, 4), torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0]))])
    assert count_directions(second) == 2
