import pytest
import torch

from tensorpress.quantize.laplace_prior import LaplacePriors, laplace_bits


def test_small_tensors_have_one_scale():
    tensors = [torch.tensor([1.0, -3.0]), torch.randn(5, 4)]
    priors = LaplacePriors(tensors)
    assert priors.factors.numel() == 0
    torch.testing.assert_close(priors.scales[0], torch.tensor(2.0).log())
    expected = sum(
        laplace_bits(t, scale).sum() for t, scale in zip(tensors, priors.scales, strict=True)
    )
    torch.testing.assert_close(priors.bits(torch.cat([t.flatten() for t in tensors])), expected)


@pytest.mark.parametrize("shape", [(80, 90), (70, 40, 3), (16, 32, 3, 3)])
def test_large_tensors_have_a_factor_for_every_row_and_column(shape):
    torch.manual_seed(0)
    rows = 4 ** torch.randn(shape[0], *[1] * (len(shape) - 1))
    columns = 4 ** torch.randn(1, shape[1], *[1] * (len(shape) - 2))
    values = (rows * columns * torch.randn(shape) * 5).round()
    priors = LaplacePriors([torch.ones(3), values, torch.zeros(7)])
    assert priors.factors.numel() == shape[0] + shape[1]
    flat = torch.cat([torch.ones(3), values.flatten(), torch.zeros(7)])
    scale = values.abs().mean().log()
    log_scales = (
        scale
        + priors.factors[: shape[0]].view(rows.shape)
        + priors.factors[shape[0] :].view(columns.shape)
    )
    expected = laplace_bits(values, log_scales).sum()
    others = laplace_bits(flat[:3], priors.scales[0]).sum()
    zeros = laplace_bits(flat[-7:], priors.scales[2]).sum()
    torch.testing.assert_close(priors.bits(flat), expected + others + zeros, rtol=1e-5, atol=1e-2)
    alone = laplace_bits(values, scale).sum()
    assert expected < 0.9 * alone


def test_training_finds_the_scale_of_a_tensor():
    torch.manual_seed(0)
    values = torch.distributions.Laplace(0.0, 3.0).sample((5000,)).round()
    priors = LaplacePriors([values * 20])
    optimizer = torch.optim.Adam(priors.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        priors.bits(values).backward()
        optimizer.step()
    assert float(priors.scales.detach().exp()) == pytest.approx(3.0, rel=0.05)
