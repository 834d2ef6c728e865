from copy import deepcopy

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import collect_batches
from tensorpress.calibrate.bias_correction import channel_means, correct_biases


def perturb(net: nn.Module) -> nn.Module:
    names = deepcopy(net)
    with torch.no_grad():
        for module in names.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.add_(0.2 * torch.randn_like(module.weight))
    return names


def mean(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        names: Tensor = net(x)
    return names.transpose(0, 1).flatten(1).mean(1)


def correct(model: nn.Module, dense: nn.Module, data: list[Tensor]) -> list[str]:
    batches = collect_batches(data, dense)
    return correct_biases(model, channel_means(dense, batches), batches)


def test_every_channel_has_the_mean_of_the_dense_model() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 2)
    ).eval()
    other, x = perturb(net), torch.randn(20, 2, 6, 6)
    assert not torch.allclose(mean(other, x), mean(net, x), atol=1e-2)
    assert correct(other, net, [x]) == ["1", "3"]
    torch.testing.assert_close(mean(other, x), mean(net, x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mean(other[:2], x), mean(net[:2], x), atol=1e-5, rtol=1e-4)


def test_the_correction_is_the_mean_over_batches_and_the_dense_model_stays() -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 2).train()
    before, other, x = deepcopy(net.state_dict()), perturb(net), torch.randn(12, 3)
    correct(other, net, [x[:6], x[6:]])
    torch.testing.assert_close(mean(other, x), mean(net, x))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.training
    assert not net._forward_hooks
    assert not other._forward_hooks


def test_layers_without_a_bias_are_unchanged() -> None:
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.LayerNorm(2))
    other = perturb(net)
    assert correct(other, net, [torch.randn(4, 3)]) == []
