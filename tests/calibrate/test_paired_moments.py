"""Sums of second moments of inputs at the same positions of two models."""

import torch

from tensorpress.calibrate.paired_moments import PairedMoments


def test_means_are_those_of_all_rows_whatever_the_batches() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(50, 4) + 2, torch.randn(50, 4) - 1
    moments = PairedMoments.zeros(4)
    for start in (0, 7, 30):
        end = {0: 7, 7: 30, 30: 50}[start]
        moments.add(x[start:end].bfloat16(), y[start:end].bfloat16())
    x, y = x.bfloat16().double(), y.bfloat16().double()
    second, cross = moments.means(centred=False)
    assert torch.allclose(second, y.T @ y / 50, atol=1e-5)
    assert torch.allclose(cross, x.T @ y / 50, atol=1e-5)
    second, cross = moments.means(centred=True)
    assert torch.allclose(second, torch.cov(y.T, correction=0), atol=1e-5)
    centred = (x - x.mean(0)).T @ (y - y.mean(0)) / 50
    assert torch.allclose(cross, centred, atol=1e-5)
