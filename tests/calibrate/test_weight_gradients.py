import pytest
import torch
from torch import nn

from tensorpress.calibrate.batches import collect_batches
from tensorpress.calibrate.weight_gradients import weight_gradients


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), (1, 5)),
        (nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten()), (1, 2, 5, 5)),
        (nn.Sequential(nn.Conv1d(2, 3, 2), nn.AdaptiveAvgPool1d(1), nn.Flatten()), (1, 2, 9)),
    ],
    ids=str,
)
def test_weight_gradients_are_the_norm_of_the_jacobian(
    net: nn.Sequential, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(1)
    x = torch.randn(shape)
    weight = net[0].weight

    def outputs(values: torch.Tensor) -> torch.Tensor:
        norms: torch.Tensor = torch.func.functional_call(net, {"0.weight": values}, (x,))
        return norms

    jacobian = torch.autograd.functional.jacobian(outputs, weight.detach())
    expected = float(jacobian.square().sum())
    norms = weight_gradients(net, collect_batches([x.repeat(3000, *[1] * (x.ndim - 1))], net))
    assert norms["0"] == pytest.approx(expected, rel=0.1)


def test_examples_do_not_mix_and_nothing_is_left_behind() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(inplace=True), nn.Linear(2, 2))
    net[2].weight.requires_grad_(False)
    x = torch.randn(6, 3)
    whole = weight_gradients(net, collect_batches([x], net))
    parts = weight_gradients(net, collect_batches([x[:3], x[3:]], net))
    assert whole == pytest.approx(parts)
    assert net[0].weight.grad is None
    assert [p.requires_grad for p in net.parameters()] == [True, True, False, True]
    assert not net[0]._forward_hooks


def test_layers_that_are_not_called_have_none() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    net.other = nn.Linear(2, 2)
    net.forward = lambda x: net[0](x)  # type: ignore[method-assign]
    assert set(weight_gradients(net, collect_batches([torch.ones(1, 2)], net))) == {"0"}


def test_layers_that_run_without_gradients_have_none() -> None:
    class Frozen(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                x = self[0](x)
            with torch.inference_mode():
                x = self[1](x)
            result: torch.Tensor = self[2](x)
            return result

    net = Frozen(*(nn.Linear(2, 2) for _ in range(3)))
    gradients = weight_gradients(net, collect_batches([torch.ones(5, 2)], net))
    assert gradients.keys() == {"2"}
