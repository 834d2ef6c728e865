import torch
from torch import nn

from tensorpress.quantize.fold_batch_norm import merge_statistics
from tensorpress.quantize.noisy_model import RateModel
from tensorpress.quantize.train_for_size import round_by_calibration


def test_every_parameter_starts_on_its_own_grid() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 4)).eval()
    nn.init.uniform_(net[1].weight, 0.5, 1.5)
    nn.init.normal_(net[1].bias)
    steps = round_by_calibration(net, [torch.randn(99, 30)], size=700)
    names = dict(net.named_parameters())
    assert steps.keys() == names.keys()
    for name, parameter in names.items():
        symbols = parameter.detach() / steps[name]
        assert torch.allclose(symbols, symbols.round(), atol=1e-3), name
    sizes = {name: steps[name] / p.detach().square().mean().sqrt() for name, p in names.items()}
    assert sizes["1.bias"] < 0.3 * sizes["0.weight"]  # vectors are few: they are rounded finely

    x = torch.randn(10, 30)
    with torch.no_grad():
        expected = net(x)
        merge_statistics(net)
        rated = RateModel(net, step=0.125, steps=steps).eval()
        assert torch.allclose(rated(x), expected, atol=1e-4)
