"""Norms between factors, and what is left of them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError
from tensorpress.press.factor_norms import ScaleNorm, factor_norms

LAYERS = [
    ("channel_svd", nn.Linear(12, 9), (6, 12), 4),
    ("spatial_svd", nn.Conv2d(6, 8, 3, padding=1, stride=2), (4, 6, 9, 9), 5),
    ("tucker2", nn.Conv2d(8, 12, 3, padding=1, groups=2), (4, 8, 7, 7), (2, 3)),
    ("cp", nn.Conv2d(6, 8, 3, padding=1), (4, 6, 7, 7), 5),
    ("channel_svd", nn.ConvTranspose2d(6, 8, 3, padding=1), (4, 6, 5, 5), 5),
    ("tensor_train", nn.Conv1d(6, 8, 3, padding=1), (4, 6, 9), (3, 4)),
]


@pytest.mark.parametrize(("scheme", "layer", "shape", "ranks"), LAYERS, ids=str)
def test_the_factors_take_the_norms_in(
    scheme: str, layer: nn.Module, shape: tuple[int, ...], ranks: int | tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(tp.press_layer(layer, scheme, ranks), nn.ReLU())
    x = 3 * torch.randn(shape)
    with factor_norms(net) as normed:
        assert sum(isinstance(m, ScaleNorm) for m in normed.modules()) == len(net[0]) - 1
        for parameter in normed.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        normed.train()
        for _ in range(3):
            normed(x)
        normed.eval()
        expected, before = normed(x), tp.unpress_layer(net[0])(x)
    assert not torch.allclose(net[0](x), before, atol=1e-2)
    torch.testing.assert_close(net.eval()(x), expected, atol=1e-4, rtol=1e-4)
    assert list(net.state_dict()) == list(nn.Sequential(net[0]).state_dict())


def test_values_are_normed_as_batch_norm_does_without_a_mean() -> None:
    norm = ScaleNorm(3, -2, like=torch.empty(0))
    x = torch.randn(20, 3, 9)
    x = x - x.mean((0, 2), keepdim=True)
    expected = functional.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(norm(x), expected)
    for _ in range(200):
        norm(x)
    torch.testing.assert_close(norm.eval()(x), expected, atol=1e-3, rtol=1e-3)


def test_training_from_scratch_gets_further_in_the_same_steps() -> None:
    """Factors of a poor start: without norms nothing happens for long."""
    losses = []
    for normed in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        net.append(nn.Flatten()).append(nn.Linear(8 * 16, 4))
        plan = tp.plan(net, scheme="cp", overrides={"2": {"ranks": 6}})
        pressed = tp.press(net, plan, init="kaiming")
        for parameter in pressed[2].parameters():
            parameter.data.mul_(0.05)
        x = torch.randn(64, 1, 8, 8)
        y = x[:, 0, 2:4, 2:6].abs().sum((1, 2)).argsort().argsort() // 16
        if normed:
            with factor_norms(pressed) as trained:
                _fit(trained, x, y)
        else:
            _fit(pressed, x, y)
        with torch.no_grad():
            losses.append(float(functional.cross_entropy(pressed.eval()(x), y)))
    assert losses[1] < 0.8 * losses[0]


def _fit(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_nothing_is_left_after_an_error_and_the_model_is_whole() -> None:
    net = nn.Sequential(tp.press_layer(nn.Linear(6, 5), "channel_svd", 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="stopped"), factor_norms(net):
        raise RuntimeError("stopped")
    assert not any(module._forward_hooks for module in net.modules())
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_a_model_without_chains_is_refused() -> None:
    with (
        pytest.raises(InvalidArgumentError, match="the model has no chain"),
        factor_norms(nn.Linear(2, 2)),
    ):
        pass
